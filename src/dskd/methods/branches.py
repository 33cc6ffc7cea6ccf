"""What hangs on a shallow stage while the student learns, and is gone when it is deployed."""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dskd.losses.feature_maps import pool_to
from dskd.models.feature_maps import spatial_mean
from dskd.models.spec import StageSpec

Downsampling = Literal["pool", "stride"]


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

    By ``pool``, the stage's map is average-pooled to the teacher's size first, where it is larger
    (less to compute), then goes through a bottleneck 1x1 -> 3x3 -> 1x1 with BatchNorm and ReLU
    between. By ``stride``, each halving of the map is a 3x3 convolution with stride 2 instead, as
    deep as the stages that the branch stands for; what is still too large is pooled at the end.
    Both end in BatchNorm and ReLU only where the teacher's map is never negative, else they are
    linear. The classifier sees the adapted map average-pooled.

    Source: *our choice*; bottlenecks like the first are what the same research group uses in SemCKD
    (AAAI 2021, arXiv 2012.03236) and SimKD (CVPR 2022, arXiv 2203.14001); a strided convolution for
    every halving is the way of BYOT's branches (ICCV 2019, arXiv 1905.08094).

    Args:
        stage: The student's stage.
        target: The teacher's map that supervises it.
        num_classes: K.
        width: Channels inside the adapter; None for ``max(32, C_t / 2)``.
        downsampling: How the map comes to the teacher's size.

    Example:
        >>> import torch
        >>> branch = Branch(StageSpec(16, 32, 32, True), StageSpec(64, 8, 8, True), num_classes=10)
        >>> output = branch(torch.zeros(2, 16, 32, 32))
        >>> output.logits.shape, output.map.shape
        (torch.Size([2, 10]), torch.Size([2, 64, 8, 8]))
    """

    def __init__(
        self,
        stage: StageSpec,
        target: StageSpec,
        num_classes: int,
        width: int | None = None,
        downsampling: Downsampling = "pool",
    ) -> None:
        super().__init__()
        inner = width or max(32, target.channels // 2)
        self.size = (target.height, target.width)
        self.pooled_first = downsampling == "pool"
        self.adapter = nn.Sequential(
            *(
                _bottleneck(stage.channels, inner)
                if self.pooled_first
                else _strided(stage, target, inner)
            ),
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
        if self.pooled_first:
            feature_map = pool_to(feature_map, *self.size)
        adapted = pool_to(self.adapter(feature_map), *self.size)
        return BranchOutput(self.classifier(spatial_mean(adapted)), adapted)


def _bottleneck(channels: int, inner: int) -> list[nn.Module]:
    return [*_conv_bn_relu(channels, inner, 1), *_conv_bn_relu(inner, inner, 3)]


def _strided(stage: StageSpec, target: StageSpec, inner: int) -> list[nn.Module]:
    """A 3x3 convolution for every time that the stage's map is twice as large as the target."""
    times = min(stage.height // target.height, stage.width // target.width)
    halvings = max(1, times).bit_length() - 1
    widths = itertools.pairwise([stage.channels, *[inner] * max(1, halvings)])
    stride = 2 if halvings else 1
    return [one for pair in widths for one in _conv_bn_relu(*pair, 3, stride)]


def _conv_bn_relu(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]
