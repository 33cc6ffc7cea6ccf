"""The objects that a Python caller gives in place of names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dskd.data import Dataset
from dskd.data.torch_dataset import TorchSplits
from dskd.models.plain_copy import unwrap


@dataclass(frozen=True)
class UserObjects:
    """Objects that a Python caller gives in place of names.

    Attributes:
        data: In place of ``data.name``.
        student: In place of ``student.name``.
        teacher: In place of ``teacher.name``; it counts as trained.
        allow_code: Whether ``package.module:function`` names may run.
    """

    data: Dataset | TorchSplits | None = None
    student: nn.Module | None = None
    teacher: nn.Module | None = None
    allow_code: bool = False


def name_of(given: object) -> str:
    """The name in a recipe of an object that has no name: ``<ResNet>``, also if it is wrapped."""
    plain = unwrap(given) if isinstance(given, nn.Module) else given
    return f"<{type(plain).__name__}>"
