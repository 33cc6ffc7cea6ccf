"""Losses are computed in float32 at least, whatever precision the forward passes ran in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from dskd.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(values: Tensor) -> Tensor:
    """``values`` in float32 where they come in half precision, else as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def in_full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """A loss that gets its tensors in float32 at least, and computes outside of autocast.

    Autocast would turn the matrix products within a loss to bfloat16 again.

    Example:
        >>> @in_full_precision
        ... def overlap(student: Tensor, teacher: Tensor) -> Tensor:
        ...     return (student @ teacher.T).mean()
        >>> half = torch.ones(2, 3, dtype=torch.bfloat16)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     overlap(half, half).dtype
        torch.float32
    """

    @functools.wraps(loss)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(_device(args), enabled=False):
            return loss(*map(_raised, args), **{n: _raised(value) for n, value in kwargs.items()})

    return wrapper


def _device(values: Any) -> str:
    """The kind of device that the first tensor among the values is on."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            return value[0].device.type
    return "cpu"


def _raised(value: Any) -> Any:
    if isinstance(value, Tensor):
        return full_precision(value)
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return [full_precision(tensor) for tensor in value]
    return value


def check_temperature(temperature: float) -> None:
    """Refuses a temperature that is not a finite number above 0.

    Raises:
        InputError: It is not.
    """
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature must be above 0, got {temperature}")


def check_same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    """Refuses tensors of student and teacher that must be of one shape and are not.

    Args:
        student: Of the student.
        teacher: Of the teacher.
        what: In the error, as in ``feature maps [B, C, H, W]``.

    Raises:
        InputError: They differ.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"{what} of one shape are needed, got {list(student.shape)} of the student, "
            f"{list(teacher.shape)} of the teacher"
        )


def check_same_batch(student: Tensor, teacher: Tensor, dimensions: int, what: str) -> None:
    """Refuses tensors that are not of as many dimensions, or not of the same number of images.

    Args:
        student: Of the student.
        teacher: Of the teacher.
        dimensions: That each must have, the batch's included.
        what: In the error, as in ``feature maps [B, C, H, W]``.

    Raises:
        InputError: They do not fit.
    """
    if {student.dim(), teacher.dim()} != {dimensions} or len(student) != len(teacher):
        raise InputError(
            f"{what} of the same images are needed, got {list(student.shape)} of the student, "
            f"{list(teacher.shape)} of the teacher"
        )
