"""Check that wrong input is accepted or refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dskd.errors import InputError


def refusal(work: Callable[[], object]) -> str | None:
    """The error message of an `InputError` that ``work`` raises; None if it succeeds."""
    try:
        work()
    except InputError as error:
        line = str(error)
    else:
        return None
    assert line.isprintable(), "the message must be one line without control characters"
    assert 10 < len(line) < 600, f"the message must be short: {line}"
    return line


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Changes the working directory while the block runs."""
    start = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(start)


def tree(folder: Path) -> dict[str, bytes]:
    """The relative paths and contents of all files and folders in a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }
