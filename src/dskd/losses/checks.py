"""Checks of the arguments of losses: one line says what is needed and what was given.

All of them look at types, shapes and plain numbers only, so that a training step never waits for
its device. The exception are labels and indices on the CPU: there `check_indices` also looks at
the values. On a GPU, a label out of range is what it is in torch: an assertion of the device.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dskd.errors import InputError, brief, unknown

TEMPERATURES = (1e-6, 1e9)
"""The lowest and highest temperature: beyond them, logits divided by it leave float32's range."""


def check_temperature(temperature: float, name: str = "temperature") -> None:
    """Refuses a temperature that is not a number above 0, or so extreme that nothing is left.

    Args:
        temperature: The value.
        name: Its name in the error.

    Raises:
        InputError: It is not in `TEMPERATURES`.
    """
    low, high = TEMPERATURES
    if not _is_number(temperature) or not low <= temperature <= high:
        raise InputError(
            f"{name} must be above 0, got {brief(temperature)}; take one from {low:g} to {high:g}"
        )


def check_number(name: str, value: float, least: float = -math.inf, most: float = math.inf) -> None:
    """Refuses an option that is not a finite number of a range.

    Args:
        name: The option.
        value: Its value.
        least: The smallest number allowed.
        most: The largest number allowed.

    Raises:
        InputError: It is not.
    """
    if not _is_number(value) or not math.isfinite(value) or not least <= value <= most:
        limits = [f"at least {least:g}"] * (least > -math.inf) + [f"at most {most:g}"] * (
            most < math.inf
        )
        needed = " and ".join(["a finite number", *limits])
        raise InputError(f"{name} must be {needed}, got {brief(value)}")


def check_flag(name: str, value: bool) -> None:
    """Refuses an option that is not true or false, such as a text, which would count as true.

    Raises:
        InputError: It is not.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {brief(value)}")


def check_choice(kind: str, value: str, known: Iterable[str]) -> None:
    """Refuses a name that is not one of the known names.

    Raises:
        InputError: It is not; the most similar name is suggested.
    """
    if not isinstance(value, str) or value not in known:
        raise unknown(kind, value, known)


def check_tensor(tensor: Tensor, what: str) -> None:
    """Refuses anything but a floating-point tensor with values and with the dimensions named.

    Args:
        tensor: The tensor.
        what: Names it and its dimensions, as in ``logits [B, K]``.

    Raises:
        InputError: It does not fit.
    """
    if not _fits(tensor, _dimensions(what)):
        raise InputError(f"{what} are needed, got {described(tensor)}")


def check_same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    """Refuses tensors of different shapes.

    Args:
        student: The student's tensor.
        teacher: The teacher's tensor.
        what: Names the tensors and their dimensions, as in ``feature maps [B, C, H, W]``.

    Raises:
        InputError: The shapes differ, or `check_tensor` refuses one.
    """
    fit = _fits(student, _dimensions(what)) and _fits(teacher, _dimensions(what))
    if not fit or student.shape != teacher.shape:
        raise InputError(f"{what} of one shape are needed, {_both(student, teacher)}")


def check_same_batch(student: Tensor, teacher: Tensor, dimensions: int, what: str) -> None:
    """Refuses tensors with another number of dimensions or of different batches.

    Args:
        student: The student's tensor.
        teacher: The teacher's tensor.
        dimensions: The number of dimensions that both need, the batch included.
        what: Names the tensors in the error, as in ``feature maps [B, C, H, W]``.

    Raises:
        InputError: The batches differ, or `check_tensor` refuses a tensor.
    """
    fit = _fits(student, dimensions) and _fits(teacher, dimensions)
    if not fit or len(student) != len(teacher):
        raise InputError(f"{what} of the same images are needed, {_both(student, teacher)}")


def check_same_channels(student: Tensor, teacher: Tensor) -> None:
    """Refuses feature maps ``[B, C, H, W]`` with different numbers of channels.

    Raises:
        InputError: The numbers differ.
    """
    if student.shape[1] != teacher.shape[1]:
        raise InputError(
            f"maps of the same channels are needed, got {student.shape[1]} of the student, "
            f"{teacher.shape[1]} of the teacher; project the student's first"
        )


def check_images(tensor: Tensor, images: int, what: str) -> None:
    """Refuses a tensor whose first dimension is not this number of images.

    Raises:
        InputError: It is not.
    """
    if len(tensor) != images:
        raise InputError(f"{what} of {images} images are needed, got {described(tensor)}")


def check_lists(**lists: Any) -> None:
    """Refuses arguments that are not lists of one length, with one element or more.

    Args:
        **lists: The lists by the names of the arguments.

    Raises:
        InputError: They are not.
    """
    if not all(isinstance(value, list | tuple) for value in lists.values()):
        found = ", ".join(map(described, lists.values()))
        names = ", ".join(lists)
        raise InputError(f"lists of tensors are needed for {names}, got {found}; one is [tensor]")
    lengths = [len(value) for value in lists.values()]
    if min(lengths) == 0 or min(lengths) != max(lengths):
        found = ", ".join(f"{length} {name}" for name, length in zip(lists, lengths, strict=True))
        raise InputError(f"lists of one length are needed, of one tensor or more, got {found}")


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Refuses labels that are not one class for each row of the logits.

    Args:
        labels: int64, ``[B]``.
        logits: ``[B, K]``, already checked.

    Raises:
        InputError: The shape or type does not fit, or, on the CPU, a label is not in 0 to K - 1.
    """
    check_indices(labels, logits.shape[:1], logits.shape[1], "labels [B]")


def check_targets(targets: Tensor, logits: Tensor) -> None:
    """Refuses targets that are neither labels nor a weight of each class for each row.

    Args:
        targets: int64, ``[B]``; or floating point, ``[B, K]``.
        logits: ``[B, K]``, already checked.

    Raises:
        InputError: The shape or type does not fit, or, on the CPU, a label is not in 0 to K - 1.
    """
    if not isinstance(targets, Tensor) or not targets.is_floating_point():
        check_labels(targets, logits)
    elif targets.shape != logits.shape:
        raise InputError(
            f"soft targets of shape {list(logits.shape)} are needed, as the logits have it, got "
            f"{described(targets)}"
        )


def check_indices(indices: Tensor, shape: tuple[int, ...], count: int, what: str) -> None:
    """Refuses indices of another type or shape, and, on the CPU, indices out of range.

    Args:
        indices: int64.
        shape: The shape that is needed.
        count: The number of things that can be named: indices are from 0 to ``count - 1``.
        what: Names the tensor in the error, as in ``labels [B]``.

    Raises:
        InputError: They do not fit.
    """
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.shape != shape:
        raise InputError(
            f"{what} of type int64 and of shape {list(shape)} are needed, got {described(indices)}"
        )
    # A GPU would have to finish its work first, and a compiled step would be cut in two.
    if indices.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (int(extreme) for extreme in indices.aminmax())
    if low < 0 or high >= count:
        raise InputError(
            f"{what} must be from 0 to {count - 1}, got {low if low < 0 else high} among them"
        )


def described(value: object) -> str:
    """How an error describes a value that should be a tensor: by its shape, or by its type.

    Example:
        >>> described(torch.zeros(2, 3)), described(torch.zeros(2).long()), described([1, 2])
        ('[2, 3]', '[2] of int64', 'a list')
    """
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = "" if value.is_floating_point() else f" of {str(value.dtype).removeprefix('torch.')}"
    return f"{list(value.shape)}{kind}{'' if value.numel() else ', which is empty'}"


def _fits(tensor: Tensor, dimensions: int) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.dim() == dimensions
        and tensor.is_floating_point()
        and tensor.numel() > 0
    )


def _dimensions(what: str) -> int:
    """The number of letters in brackets."""
    return what.partition("[")[2].partition("]")[0].count(",") + 1


def _both(student: Tensor, teacher: Tensor) -> str:
    return f"got {described(student)} of the student, {described(teacher)} of the teacher"


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
