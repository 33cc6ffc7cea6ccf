"""Vectors of unit length."""

from __future__ import annotations

import pytest
import torch

from dskd.losses.vectors import unit


@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
def test_vectors_get_length_one(length: float) -> None:
    vectors = torch.randn(3, 4, 5).double() * length
    torch.testing.assert_close(unit(vectors), torch.nn.functional.normalize(vectors, dim=-1))


def test_a_zero_vector_stays_zero_and_gets_no_gradient() -> None:
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    directions = unit(vectors)
    assert directions[0].tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(directions.sum(), vectors)
    assert gradient[0].tolist() == [0, 0]
    assert gradient[1].abs().sum() > 0
