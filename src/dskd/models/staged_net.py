"""What every network that can be distilled offers: its stages, its pooled vector, its logits."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from dskd.models.feature_maps import average
from dskd.models.output import ModelOutput


class StagedNet(nn.Module, ABC):
    """An image classifier that can show the feature map at the end of each of its stages.

    A subclass says what its stages are called, where its last linear layer is, and how one forward
    pass runs. ``forward`` gives the logits alone, so that the network is an ordinary classifier to
    anything that does not care for the stages.

    Attributes:
        stage_names: One name for each stage, shallow to deep. In the networks of this package it
            is the path of the submodule that ends the stage.
        classifier_name: The path of the final linear layer.
    """

    stage_names: tuple[str, ...]
    classifier_name: str

    @abstractmethod
    def forward_stages(self, x: Tensor) -> ModelOutput:
        """Run the network once on ``[B, C, H, W]`` and give everything that distillation reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify ``[B, C, H, W]``: logits ``[B, K]``."""
        return self.forward_stages(x).logits

    def _walk(self, x: Tensor) -> list[Tensor]:
        """Send ``x`` through the submodules that the stages are named after."""
        maps: list[Tensor] = []
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
            maps.append(x)
        return maps

    def _answer(self, stages: list[Tensor], last: Tensor) -> ModelOutput:
        """Pool ``last`` over the whole map, whatever its size, and classify the vector."""
        pooled = average(last)
        logits: Tensor = self.get_submodule(self.classifier_name)(pooled)
        return ModelOutput(logits, tuple(stages), pooled, last)

    def _init_convolutions(self) -> None:
        """Draw the convolutions from He's normal by fan-out, ``N(0, 2 / (k * k * C_out))``."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
