"""Branches: the adapter's size, depth and last layer."""

from __future__ import annotations

import torch
from torch import nn

from dskd.methods.branches import Branch
from dskd.models.spec import StageSpec


def test_an_adapter_ends_in_relu_only_if_the_target_is_never_negative() -> None:
    stage = StageSpec(8, 16, 16, True)
    behind_relu = Branch(stage, StageSpec(12, 8, 8, True), 4)
    linear = Branch(stage, StageSpec(12, 8, 8, False), 4)
    x = torch.randn(16, 8, 16, 16)
    assert (behind_relu(x).map >= 0).all()
    assert (linear(x).map < 0).any()
    assert behind_relu.adapter[0].out_channels == 32  # max(32, 12 / 2)


def test_a_strided_adapter_halves_the_map_as_often_as_needed() -> None:
    target = StageSpec(12, 8, 8, True)
    for size, strides in ((32, [2, 2, 1]), (17, [2, 1]), (16, [2, 1]), (8, [1, 1]), (4, [1, 1])):
        branch = Branch(StageSpec(5, size, size, True), target, 4, downsampling="stride")
        convolutions = [m for m in branch.adapter if isinstance(m, nn.Conv2d)]
        assert [m.stride[0] for m in convolutions] == strides
        side = min(size, 8)
        assert branch(torch.zeros(2, 5, size, size)).map.shape == (2, 12, side, side)
