"""The spatial mean: the values of ``mean`` with a gradient in the better memory format."""

from __future__ import annotations

import pytest
import torch

from dskd.models.feature_maps import spatial_mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_spatial_mean_is_the_mean(dtype: torch.dtype) -> None:
    feature_map = torch.randn(4, 6, 8, 4).to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(spatial_mean(feature_map).sum(), feature_map)
    (expected,) = torch.autograd.grad(feature_map.mean((2, 3)).sum(), feature_map)
    assert torch.equal(spatial_mean(feature_map), feature_map.mean((2, 3)))
    assert torch.equal(gradient, expected)


def test_a_channels_last_map_gets_a_channels_last_gradient() -> None:
    feature_map = torch.randn(4, 6, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(spatial_mean(feature_map.relu()).sum(), feature_map)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
