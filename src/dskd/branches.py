"""What hangs on a shallow stage while the student learns, and is gone when it is deployed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dskd.losses.maps import pool_to
from dskd.models.maps import average
from dskd.models.spec import StageSpec


class BranchOutput(NamedTuple):
    """What a branch says of a shallow stage.

    Attributes:
        logits: z_l, ``[B, K]``.
        map: A_l(F_l), ``[B, C_t, H, W]``.
    """

    logits: Tensor
    map: Tensor


class Branch(nn.Module):
    """Adapter and classifier on one shallow stage: ``F_l -> A_l(F_l) -> z_l``.

    The stage's map is average-pooled to the teacher's size first (at full size a branch would
    cost more than the student), then goes through a bottleneck 1x1 -> 3x3 -> 1x1 with BatchNorm
    and ReLU between. It ends in BatchNorm and ReLU only where the teacher's map is never
    negative, else it is linear. The classifier sees the adapted map average-pooled.

    Source: *our choice*; bottlenecks like this one are what the same research group uses in
    SemCKD (AAAI 2021, arXiv 2012.03236) and SimKD (CVPR 2022, arXiv 2203.14001).

    Args:
        stage: The student's stage.
        target: The teacher's map that supervises it.
        num_classes: K.
        width: Channels inside the bottleneck; None for ``max(32, C_t / 2)``.

    Example:
        >>> import torch
        >>> branch = Branch(StageSpec(16, 32, 32, True), StageSpec(64, 8, 8, True), num_classes=10)
        >>> output = branch(torch.zeros(2, 16, 32, 32))
        >>> output.logits.shape, output.map.shape
        (torch.Size([2, 10]), torch.Size([2, 64, 8, 8]))
    """

    def __init__(
        self, stage: StageSpec, target: StageSpec, num_classes: int, width: int | None = None
    ) -> None:
        super().__init__()
        inner = width or max(32, target.channels // 2)
        self.size = (target.height, target.width)
        self.adapter = nn.Sequential(
            *_conv_bn_relu(stage.channels, inner, 1),
            *_conv_bn_relu(inner, inner, 3),
            *(
                _conv_bn_relu(inner, target.channels, 1)
                if target.nonnegative
                else [nn.Conv2d(inner, target.channels, 1)]
            ),
        )
        self.classifier = nn.Linear(target.channels, num_classes)
        self.adapter.to(memory_format=torch.channels_last)

    def forward(self, feature_map: Tensor) -> BranchOutput:
        """The branch's logits and map, from the stage's map ``[B, C_l, H_l, W_l]``."""
        adapted = self.adapter(pool_to(feature_map, *self.size))
        return BranchOutput(self.classifier(average(adapted)), adapted)


def _conv_bn_relu(channels_in: int, channels_out: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]
