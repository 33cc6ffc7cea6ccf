"""Losses of the methods that use the teacher's classifier again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.feature_maps import pool_to
from dskd.losses.reuse import simkd, srrl


def test_srrl_is_what_a_loop_gives() -> None:
    h, g, z, y = (torch.randn(3, length) for length in (4, 4, 2, 2))
    vectors = sum((h[b, d] - g[b, d]).item() ** 2 for b in range(3) for d in range(4)) / 12
    logits = sum((z[b, k] - y[b, k]).item() ** 2 for b in range(3) for k in range(2)) / 6
    assert srrl(h, g, z, y).item() == pytest.approx(vectors + logits)
    assert srrl(h, g, z, y, feature=0.5, regression=3.0).item() == pytest.approx(
        0.5 * vectors + 3 * logits
    )


def test_simkd_is_the_mean_of_the_squares() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = sum(
        (s - t) ** 2
        for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    )
    assert simkd(student, teacher).item() == pytest.approx(expected / student.numel())


def test_the_larger_of_two_maps_is_pooled() -> None:
    small, large = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 8, 6)
    pooled = (large[:, :, ::2] + large[:, :, 1::2]) / 2
    expected = (small - pooled).square().mean()
    torch.testing.assert_close(simkd(small, large), expected)
    torch.testing.assert_close(simkd(large, small), expected)


def test_pooling_to_sizes_that_divide_is_average_pooling() -> None:
    feature_map = torch.randn(2, 3, 8, 6)
    torch.testing.assert_close(pool_to(feature_map, 4, 3), F.avg_pool2d(feature_map, 2))
    assert pool_to(feature_map, 8, 9) is feature_map


@pytest.mark.parametrize("size", [(7, 5), (3, 3), (1, 2), (4, 7)], ids=str)
def test_pooling_keeps_the_average_whatever_the_sizes(size: tuple[int, int]) -> None:
    """What a classifier of the average sees does not change, unlike with adaptive pooling."""
    feature_map = torch.randn(2, 3, 8, 7).double()
    pooled = pool_to(feature_map, *size)
    assert pooled.shape == (2, 3, *size)
    torch.testing.assert_close(pooled.mean((2, 3)), feature_map.mean((2, 3)))


def test_windows_that_part_a_cell_take_their_share_of_it() -> None:
    row = torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 1, 3)
    expected = torch.tensor([(1 + 5) / 1.5, (5 + 100) / 1.5]).view(1, 1, 1, 2)
    torch.testing.assert_close(pool_to(row, 1, 2), expected)
    torch.testing.assert_close(pool_to(row.mT, 2, 1), expected.mT)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_values_and_gradients_are_finite_whatever_comes_in(batch: int, scale: float) -> None:
    student = (scale * torch.randn(batch, 3, 5, 7)).requires_grad_()
    teacher = scale * torch.randn(batch, 3, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        half, target = student.bfloat16(), teacher.bfloat16()
        loss = simkd(half, target)
        logits = half.flatten(2).mean(2)[:, :2]
        vectors = half.mean((2, 3)), target.mean((2, 3))
        loss = loss + srrl(*vectors, logits, -logits.detach())
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: srrl(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 5), torch.ones(2, 5)),
            r"vectors \[B, D\] of one shape are needed",
        ),
        (
            lambda: srrl(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 5), torch.ones(2, 6)),
            r"logits \[B, K\] of one shape are needed",
        ),
        (
            lambda: simkd(torch.ones(2, 3, 4, 4), torch.ones(3, 3, 4, 4)),
            "of the same images are needed",
        ),
        (
            lambda: simkd(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4)),
            "the same channels are needed, got 3 of the student, 5 of the teacher",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Tensor], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
