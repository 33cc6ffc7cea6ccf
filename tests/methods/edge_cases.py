"""Checks that every loss on maps or vectors must pass, and extreme inputs for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""A loss of a student's and a teacher's tensor; other arguments are bound."""

MAPS = {
    "zeros": torch.zeros(2, 3, 4, 4),
    "equal": torch.ones(2, 3, 4, 4),
    "one": torch.rand(1, 3, 4, 4),
    "position": torch.rand(2, 3, 1, 1),
    "large": 100 * torch.randn(2, 3, 4, 4).sign(),
    "sparse": torch.rand(2, 3, 4, 4) * torch.eye(4),
}

VECTORS = {
    "zeros": torch.zeros(4, 3),
    "equal": torch.ones(4, 3),
    "one": torch.rand(1, 3),
    "two": torch.rand(2, 3),
    "twins": torch.rand(2, 3).repeat(2, 1),
    "opposite": torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]),
    "large": 100 * torch.randn(4, 3).sign(),
    "one of zeros": torch.cat([torch.zeros(1, 3), torch.rand(3, 3)]),
    "tiny": 1e-30 * torch.rand(4, 3),
}


def check_finite(loss: PairLoss, values: Tensor, largest_gradient: float) -> None:
    """Value and gradient are finite if the student, the teacher or both give these values."""
    for student, teacher in (
        (values, torch.rand_like(values)),
        (torch.rand_like(values), values),
        (values, values),
    ):
        student = student.clone().requires_grad_()
        value = loss(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient.abs().max() < largest_gradient


def check_finite_with_gradient(loss: Callable[..., Tensor], *inputs: Tensor) -> None:
    """The value is finite and float32, and so is each gradient that the loss gives."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    assert value.isfinite()
    assert value.dtype == torch.float32
    for gradient in torch.autograd.grad(value, leaves, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


def check_full_precision(loss: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Under autocast, half precision inputs give the value of the same inputs in float32."""
    half = [tensor.bfloat16() for tensor in inputs]
    expected = loss(*(tensor.float() for tensor in half))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*half)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


def check_lone_image(loss: PairLoss) -> None:
    """A single image has no relations to others: value and gradient are 0."""
    student = torch.rand(1, 3, requires_grad=True)
    value = loss(student, torch.rand(1, 3))
    (gradient,) = torch.autograd.grad(value, student)
    assert abs(value.item()) < 1e-12
    assert gradient.abs().max() < 1e-6


def check_relations(loss: PairLoss) -> None:
    """Scale, rotation and order of the vectors do not change a loss of their relations."""
    student, teacher = torch.randn(5, 3).double(), torch.randn(5, 7).double()
    rotation, _ = torch.linalg.qr(torch.randn(3, 3).double())
    order = torch.tensor([3, 0, 4, 1, 2])
    value = loss(student, teacher)
    torch.testing.assert_close(loss(2 * student @ rotation, 3 * teacher), value)
    torch.testing.assert_close(loss(student[order], teacher[order]), value)
    assert abs(loss(2 * student @ rotation, student).item()) < 1e-7
