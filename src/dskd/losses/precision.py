"""Losses compute in float32 or more, whatever precision the forward passes used."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from dskd.errors import InputError, unknown

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(values: Tensor) -> Tensor:
    """``values`` in float32 if they are in half precision, else unchanged."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def outside_float16(device: str) -> AbstractContextManager[object]:
    """Turns autocast off within a block if it computes in float16, for values beyond its range.

    Autocast in bfloat16, whose range is that of float32, stays as it is.

    Args:
        device: The type of the device.

    Example:
        >>> with torch.autocast("cpu", torch.float16), outside_float16("cpu"):
        ...     (torch.full((1, 1), 300.0) @ torch.full((1, 1), 300.0)).item()
        90000.0
    """
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return torch.autocast(device, enabled=False) if half else nullcontext()


def in_full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Makes a loss compute in float32 or more, outside of autocast.

    Converting the inputs alone is not enough: autocast would compute the matrix products inside
    the loss in bfloat16 again. If one input is in float64, all are computed in float64.

    Tensors of the arguments, also those given by name or in lists, must be on one device. Python
    refuses an unknown argument of a function with a TypeError; here it is an InputError, as for
    every other setting.

    Raises:
        InputError: Tensors are on several devices, or an argument does not exist.

    Example:
        >>> @in_full_precision
        ... def overlap(student: Tensor, teacher: Tensor) -> Tensor:
        ...     return (student @ teacher.T).mean()
        >>> half = torch.ones(2, 3, dtype=torch.bfloat16)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     overlap(half, half).dtype
        torch.float32
    """
    parameters = inspect.signature(loss).parameters
    known = [*parameters] if not _takes_any(parameters.values()) else None

    @functools.wraps(loss)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if known is not None and name not in known:
                raise unknown(f"argument of {loss.__name__}", name, known)
        tensors = _tensors([*args, *kwargs.values()])
        device, dtype = _device(tensors), _dtype(tensors)
        with torch.autocast(device, enabled=False):
            return loss(
                *(_converted(value, dtype) for value in args),
                **{name: _converted(value, dtype) for name, value in kwargs.items()},
            )

    return wrapper


def _takes_any(parameters: Iterable[inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _tensors(values: list[Any]) -> list[Tensor]:
    """The tensors among the values and in their lists."""
    found = []
    for value in values:
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, Tensor):
                found.append(one)
    return found


def _device(tensors: list[Tensor]) -> str:
    """The type of the device that all tensors are on."""
    if not tensors:
        return "cpu"
    first = tensors[0].device
    for tensor in tensors:
        if tensor.device != first:
            raise InputError(
                f"all tensors of a loss must be on one device, got {first} and {tensor.device}; "
                "move them with tensor.to(device)"
            )
    return first.type


def _dtype(tensors: list[Tensor]) -> torch.dtype:
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def _converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return [_converted(one, dtype) for one in value]
    return value
