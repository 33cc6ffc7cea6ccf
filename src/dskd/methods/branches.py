"""Auxiliary branches on the shallow stages, used in training only."""

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
    """The output of a branch.

    Attributes:
        logits: z_l, ``[B, K]``.
        map: A_l(F_l), ``[B, C_t, H, W]``.
    """

    logits: Tensor
    map: Tensor


class Branch(nn.Module):
    """An adapter and a classifier on one shallow stage: ``F_l -> A_l(F_l) -> z_l``.

    With ``pool``, the stage's map is first average-pooled to the target's size if it is larger,
    which saves computation. Then it goes through a bottleneck of 1x1, 3x3 and 1x1 convolutions with
    BatchNorm and ReLU between them. With ``stride``, a 3x3 convolution with stride 2 halves the map
    as often as needed instead, so that the branch is about as deep as the stages it replaces; a map
    that is still too large is pooled at the end. Both adapters end in BatchNorm and ReLU only if
    the target is never negative; otherwise they end in a convolution. The classifier sees the
    average of the adapted map.

    Source: *our choice*. The same research group uses bottlenecks like the first in SemCKD
    (AAAI 2021, arXiv 2012.03236) and SimKD (CVPR 2022, arXiv 2203.14001). The branches of BYOT
    (ICCV 2019, arXiv 1905.08094) have a strided convolution for every halving.

    Args:
        stage: The student's stage.
        target: The map that supervises it.
        num_classes: K.
        width: Channels inside the adapter; None for ``max(32, C_t / 2)``.
        downsampling: How the map is brought to the target's size.

    Example:
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
    """A 3x3 convolution with stride 2 for every halving from the stage's size to the target's."""
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
