"""Paths that a user gave."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dskd.errors import InputError, brief
from dskd.settings import expand_path


def as_path(value: str | os.PathLike[str], what: str) -> Path:
    """A path that a user gave, as text or as a path; ``~`` is the home folder.

    Args:
        value: The path.
        what: Names the argument in an error.

    Raises:
        InputError: It is no path.

    Example:
        >>> as_path("runs/a", "run")
        PosixPath('runs/a')
    """
    try:
        path = expand_path(value)
    except ValueError as error:
        raise InputError(f"{what}: {error}, got {brief(value)}") from None
    if not isinstance(path, Path):
        raise InputError(f"{what}: a path is needed, got {brief(value)}")
    return path


def one_or_more(paths: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    """The paths of an argument that takes one or several.

    Args:
        paths: One path, or several.

    Example:
        >>> one_or_more("runs/a")
        ['runs/a']
    """
    return [paths] if isinstance(paths, str | Path) else paths
