"""Branches: the adapter's layers, size, depth and end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from dskd.methods.branches import AdapterForm, Branch, linear_classifier
from dskd.models.spec import StageSpec


def test_an_adapter_ends_in_relu_only_if_the_target_is_never_negative() -> None:
    stage = StageSpec(8, 16, 16, True)
    behind_relu = Branch(stage, StageSpec(12, 8, 8, True), linear_classifier(4))
    linear = Branch(stage, StageSpec(12, 8, 8, False), linear_classifier(4))
    x = torch.randn(16, 8, 16, 16)
    assert (behind_relu(x).map >= 0).all()
    assert (linear(x).map < 0).any()
    assert behind_relu.adapter[0].out_channels == 32  # max(32, 12 / 2)


def test_a_strided_adapter_halves_the_map_as_often_as_needed() -> None:
    target = StageSpec(12, 8, 8, True)
    for size, strides in ((32, [2, 2, 1]), (17, [2, 1]), (16, [2, 1]), (8, [1, 1]), (4, [1, 1])):
        branch = Branch(
            StageSpec(5, size, size, True),
            target,
            linear_classifier(4),
            AdapterForm(kind="stride"),
        )
        convolutions = [m for m in branch.adapter if isinstance(m, nn.Conv2d)]
        assert [m.stride[0] for m in convolutions] == strides
        side = min(size, 8)
        assert branch(torch.zeros(2, 5, size, size)).map.shape == (2, 12, side, side)


@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 16)])
def test_a_strided_adapter_halves_as_often_as_both_sides_allow(height: int, width: int) -> None:
    branch = Branch(
        StageSpec(5, height, width, True),
        StageSpec(12, 8, 8, True),
        linear_classifier(4),
        AdapterForm(kind="stride"),
    )
    assert [conv.stride[0] for conv in convolutions(branch)] == [2, 1]
    assert branch(torch.zeros(2, 5, height, width)).map.shape == (2, 12, 8, 8)


def convolutions(branch: Branch) -> list[nn.Conv2d]:
    return [m for m in branch.adapter if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize(("kind", "kernels"), [("pool", [1, 3, 1]), ("stride", [3, 3, 1])])
def test_the_layers_of_an_adapter(kind: Any, kernels: list[int], nonnegative: bool) -> None:
    """A bottleneck, or a 3x3 convolution for every halving; then 1x1 to the teacher's channels."""
    target = StageSpec(12, 4, 4, nonnegative)
    branch = Branch(StageSpec(5, 16, 16, True), target, linear_classifier(4), AdapterForm(7, kind))
    found = convolutions(branch)
    assert [conv.kernel_size for conv in found] == [(kernel, kernel) for kernel in kernels]
    assert [conv.padding for conv in found] == [(kernel // 2, kernel // 2) for kernel in kernels]
    assert [(c.in_channels, c.out_channels) for c in found] == [*pairwise([5, 7, 7, 12])]
    assert [conv.bias is None for conv in found] == [True, True, nonnegative]
    kinds = [type(layer) for layer in branch.adapter]
    last = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] if nonnegative else [nn.Conv2d]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2 + last
    assert isinstance(branch.classifier, nn.Linear)
    assert (branch.classifier.in_features, branch.classifier.out_features) == (12, 4)


def test_the_3x3_convolution_of_a_bottleneck_sees_the_neighbours_of_a_position() -> None:
    spec = StageSpec(2, 5, 5, False)
    branch = Branch(spec, spec, linear_classifier(4)).eval()
    image = torch.randn(1, 2, 5, 5, requires_grad=True)
    branch(image).map[0, :, 2, 2].sum().backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0) > 0
    assert seen.sum() <= 9
    assert not seen[0].any()
    assert seen[1:4, 1:4].sum() > 1


def test_the_weights_of_an_adapter_start_as_kaiming_s() -> None:
    """The standard deviation is sqrt(2 / (outputs k^2)), and BatchNorm starts as the identity."""
    spec = StageSpec(256, 4, 4, True)
    for conv in convolutions(Branch(spec, spec, linear_classifier(4))):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        assert abs(conv.weight.mean().item()) < 0.01
