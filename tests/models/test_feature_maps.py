"""The mean of a map: the plain one's numbers, without its cost behind."""

from __future__ import annotations

import pytest
import torch

from dskd.models.feature_maps import spatial_mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_of_a_map_is_its_mean(dtype: torch.dtype) -> None:
    feature_map = torch.randn(4, 6, 8, 4).to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(spatial_mean(feature_map).sum(), feature_map)
    (expected,) = torch.autograd.grad(feature_map.mean((2, 3)).sum(), feature_map)
    assert torch.equal(spatial_mean(feature_map), feature_map.mean((2, 3)))
    assert torch.equal(gradient, expected)


def test_a_map_with_its_channels_last_gets_its_gradient_so() -> None:
    feature_map = torch.randn(4, 6, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(spatial_mean(feature_map.relu()).sum(), feature_map)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
