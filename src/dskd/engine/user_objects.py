"""The objects that a Python caller gives in place of names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from dskd.data import Dataset
from dskd.data.hf import HFSplits
from dskd.data.torch_dataset import TorchSplits
from dskd.methods import outside
from dskd.methods.base import Method
from dskd.models.plain_copy import unwrap

GivenData = Dataset | TorchSplits | HFSplits
"""Images that a Python caller gives."""


@dataclass(frozen=True)
class UserObjects:
    """Objects that a Python caller gives in place of names.

    Attributes:
        data: In place of ``data.name``.
        student: In place of ``student.name``.
        teacher: In place of ``teacher.name``; it counts as trained.
        allow_code: Whether ``package.module:function`` names may run.
        methods: Classes in place of names of methods, for other processes that train with them.
    """

    data: GivenData | None = None
    student: nn.Module | None = None
    teacher: nn.Module | None = None
    allow_code: bool = False
    methods: tuple[type[Method], ...] = ()

    @contextmanager
    def available(self) -> Iterator[None]:
        """Makes the given methods known here, and allows code within the block if that is given."""
        for kind in self.methods:
            outside.give(kind)
        with outside.code_allowed(self.allow_code):
            yield


def name_of(given: object) -> str:
    """The name in a recipe of an object that has no name: ``<ResNet>``, also if it is wrapped."""
    plain = unwrap(given) if isinstance(given, nn.Module) else given
    return f"<{type(plain).__name__}>"
