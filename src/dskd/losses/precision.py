"""Losses compute in float32 or more, whatever precision the forward passes used."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(values: Tensor) -> Tensor:
    """``values`` in float32 if they are in half precision, else unchanged."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def in_full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Makes a loss compute in float32 or more, outside of autocast.

    Converting the inputs alone is not enough: autocast would compute the matrix products inside
    the loss in bfloat16 again.

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
    """The device type of the first tensor among the values."""
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
