"""Checks of the arguments of losses: one line says which shapes are needed and which came."""

from __future__ import annotations

from torch import Tensor

from dskd.errors import InputError


def check_temperature(temperature: float) -> None:
    """Refuses a temperature that is not a finite number above 0.

    Raises:
        InputError: It is not.
    """
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature must be above 0, got {temperature}")


def check_same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    """Refuses tensors of different shapes.

    Args:
        student: The student's tensor.
        teacher: The teacher's tensor.
        what: Names the tensors in the error, as in ``feature maps [B, C, H, W]``.

    Raises:
        InputError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"{what} of one shape are needed, got {list(student.shape)} of the student, "
            f"{list(teacher.shape)} of the teacher"
        )


def check_same_batch(student: Tensor, teacher: Tensor, dimensions: int, what: str) -> None:
    """Refuses tensors with another number of dimensions or of different batches.

    Args:
        student: The student's tensor.
        teacher: The teacher's tensor.
        dimensions: The number of dimensions that both need, the batch included.
        what: Names the tensors in the error, as in ``feature maps [B, C, H, W]``.

    Raises:
        InputError: They do not fit.
    """
    if {student.dim(), teacher.dim()} != {dimensions} or len(student) != len(teacher):
        raise InputError(
            f"{what} of the same images are needed, got {list(student.shape)} of the student, "
            f"{list(teacher.shape)} of the teacher"
        )


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
