"""The metadata of a file of weights, which another program may have saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dskd.errors import InputError
from dskd.storage.weights import read_metadata

M = TypeVar("M")


def metadata_if_any(path: Path, read: Callable[[Path], M]) -> M | None:
    """The metadata of a student's file; None for weights that another program has saved.

    Args:
        path: The file.
        read: Reads the metadata of a task's student.

    Raises:
        InputError: It is that of another task.
    """
    try:
        read_metadata(path)
    except InputError:  # what reads the weights says what is wrong with the file, if anything
        return None
    return read(path)
