"""Networks that return the feature map of each of their stages."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from dskd.models.feature_maps import spatial_mean
from dskd.models.output import ModelOutput


class StagedNet(nn.Module, ABC):
    """An image classifier that returns the feature map at the end of each stage.

    A subclass sets `stage_names` and `classifier_name` and implements `forward_stages`. `forward`
    returns the logits only, so that the network can be used as any other classifier.

    Attributes:
        stage_names: Name of each stage, shallow to deep. In the zoo it is the path of the
            submodule that ends the stage.
        classifier_name: Path of the final linear layer.
    """

    stage_names: tuple[str, ...]
    classifier_name: str

    @abstractmethod
    def forward_stages(self, x: Tensor) -> ModelOutput:
        """Run the network once on ``[B, C, H, W]``; return logits, stages and pooled vector."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify ``[B, C, H, W]``: logits ``[B, K]``."""
        return self.forward_stages(x).logits

    def _run_stages(self, x: Tensor) -> list[Tensor]:
        """Run the submodules in `stage_names` one after the other; return their outputs."""
        maps: list[Tensor] = []
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
            maps.append(x)
        return maps

    def _classify(self, stages: list[Tensor], last: Tensor) -> ModelOutput:
        """Average ``last`` over all positions and classify the resulting vector."""
        pooled = spatial_mean(last)
        logits: Tensor = self.get_submodule(self.classifier_name)(pooled)
        return ModelOutput(logits, tuple(stages), pooled, last)

    def _init_convolutions(self) -> None:
        """Initialise the convolutions from He's normal (fan-out), ``N(0, 2 / (k * k * C_out))``."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
