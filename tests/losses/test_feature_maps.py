"""Feature maps: pooling to one size, and the squared error between two maps."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dskd.errors import InputError
from dskd.losses import feature_loss
from dskd.losses.feature_maps import comparable, mean_squares, pool_to, pooled_alike


def test_pooling_to_sizes_that_divide_is_average_pooling() -> None:
    feature_map = torch.randn(2, 3, 8, 6)
    torch.testing.assert_close(pool_to(feature_map, 4, 3), F.avg_pool2d(feature_map, 2))
    assert pool_to(feature_map, 8, 9) is feature_map


def test_pooling_gives_the_smaller_of_the_two_sizes() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert pool_to(x, 2, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool_to(x, 8, 8) is x
    assert pool_to(x, 3, 3).shape == (1, 1, 3, 3)


@pytest.mark.parametrize("size", [(7, 5), (3, 3), (1, 2), (4, 7)], ids=str)
def test_pooling_preserves_the_average_for_all_sizes(size: tuple[int, int]) -> None:
    """The input of a classifier of the average does not change, unlike with adaptive pooling."""
    feature_map = torch.randn(2, 3, 8, 7).double()
    pooled = pool_to(feature_map, *size)
    assert pooled.shape == (2, 3, *size)
    torch.testing.assert_close(pooled.mean((2, 3)), feature_map.mean((2, 3)))


def test_a_window_takes_its_share_of_a_cell_on_its_border() -> None:
    row = torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 1, 3)
    expected = torch.tensor([(1 + 5) / 1.5, (5 + 100) / 1.5]).view(1, 1, 1, 2)
    torch.testing.assert_close(pool_to(row, 1, 2), expected)
    torch.testing.assert_close(pool_to(row.mT, 2, 1), expected.mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(4, 4), (2, 12), (8, 4)])
def test_pooling_to_a_size_that_divides_gives_the_numbers_of_avg_pool2d(
    dtype: torch.dtype, layout: torch.memory_format, size: tuple[int, int]
) -> None:
    feature_map = torch.randn(2, 3, 8, 12).to(dtype).to(memory_format=layout).requires_grad_()
    pooled = pool_to(feature_map, *size)
    expected = nn.functional.avg_pool2d(feature_map, (8 // size[0], 12 // size[1]))
    weights = torch.randn(pooled.shape).to(dtype)
    gradients = [torch.autograd.grad(given, feature_map, weights) for given in (pooled, expected)]
    assert torch.equal(pooled, expected)
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_the_gradient_of_a_pooled_map_has_its_layout() -> None:
    feature_map = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    pooled = pool_to(feature_map, 2, 4)
    (gradient,) = torch.autograd.grad(pooled, feature_map, torch.randn_like(pooled))
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_pooling_can_be_differentiated_twice() -> None:
    feature_map = torch.randn(1, 2, 4, 4, dtype=torch.double, requires_grad=True)
    pool = partial(pool_to, height=2, width=2)
    assert torch.autograd.gradcheck(pool, (feature_map,))
    assert torch.autograd.gradgradcheck(pool, (feature_map,))


def test_two_maps_are_pooled_to_the_smaller_height_and_width() -> None:
    wide, tall = torch.rand(2, 3, 4, 7), torch.rand(2, 5, 6, 3)
    first, second = pooled_alike(wide, tall)
    assert (first.shape, second.shape) == ((2, 3, 4, 3), (2, 5, 4, 3))
    with pytest.raises(InputError, match="of the same images are needed"):
        pooled_alike(wide, tall[:1])
    with pytest.raises(InputError, match="same channels are needed, got 3 of the student, 5 of"):
        comparable(wide, tall)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_teacher_s_scale_does_not_change_the_relative_feature_loss(scale: float) -> None:
    target = torch.randn(3, 4, 2, 2)
    adapted = torch.randn(3, 4, 2, 2)
    expected = feature_loss(adapted, target)
    torch.testing.assert_close(feature_loss(scale * adapted, scale * target), expected)
    assert feature_loss(torch.zeros_like(target), target).item() == pytest.approx(1.0)
    assert feature_loss(target, target).item() == 0


def test_a_target_map_of_zeros_gives_a_finite_loss() -> None:
    assert feature_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)).item() == 0


def test_a_channels_last_map_gets_a_channels_last_gradient() -> None:
    adapted, target = (
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last) for _ in range(2)
    )
    (gradient,) = torch.autograd.grad(feature_loss(adapted.requires_grad_(), target), adapted)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_the_mean_square_has_the_gradients_of_its_formula() -> None:
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(mean_squares(maps), maps.square().mean((1, 2, 3)))
    assert torch.autograd.gradcheck(mean_squares, maps)
    assert torch.autograd.gradgradcheck(mean_squares, maps)


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"branch \[1, 2, 4, 4\], teacher \[1, 2, 2, 2\]"):
        feature_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2))
