"""What becomes of something that is wrong: it is read after all, or refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dskd.errors import InputError


def refusal(work: Callable[[], object]) -> str | None:
    """The line in which ``work`` refuses; None where it does its work."""
    try:
        work()
    except InputError as error:
        line = str(error)
    else:
        return None
    assert line.isprintable(), "what is said must be one line that does nothing to a terminal"
    assert 10 < len(line) < 600, f"what is said must be short: {line}"
    return line


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In that folder, as a program that was started there."""
    start = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(start)


def tree(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }
