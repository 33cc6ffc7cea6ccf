"""Writing to disk: a file is whole or not there, and a write that fails says what it needed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dskd.errors import InputError

PART = ".part"
"""How the names of files end that are not whole yet; they begin with a dot."""
PROBE = 4096
_BUFFER = 2**20


@contextmanager
def replacing(path: Path, verify: Callable[[IO[bytes]], None] | None = None) -> Iterator[IO[bytes]]:
    """Gives a file to write, which takes the place of ``path`` once it is whole.

    A temporary file in the same folder is flushed to disk, verified and renamed; then the folder
    is flushed. Until then ``path`` is what it was before.

    Args:
        path: The file to be written.
        verify: Reads the file back, from its start, and raises where it is not as it should be.

    Raises:
        OSError: It could not be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w+b", buffering=_BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if verify is not None:
                _forget_cached(file)
                file.seek(0)
                verify(file)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _forget_cached(file: IO[bytes]) -> None:
    """Has the next read come from the disk, where the system can be asked for that."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Writes ``data`` so that ``path`` holds either all of it or what it held before.

    Raises:
        OSError: It could not; see `telling`.
    """
    with telling(path, lambda: len(data)), replacing(path) as file:
        file.write(data)


def make_folder(folder: Path) -> None:
    """Makes a folder that is still there after a power cut; nothing where it is there already.

    Raises:
        OSError: It could not be made.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _flush_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Removes a folder with all that is in it: to others it is there whole or not at all."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        doomed = folder.with_name(f".{folder.name}{PART}")
        remove_folder(doomed)  # a killed removal may have left it
        folder.rename(doomed)
        shutil.rmtree(doomed)


def remove_parts(folder: Path) -> None:
    """Removes what killed writes and removals left in a folder."""
    for path in folder.glob(f".*{PART}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def telling(path: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Has an error of the disk say which file it was about, and how many bytes that needed.

    Args:
        path: The file that the block writes.
        needed: Its bytes; asked for when the write has failed.

    Raises:
        OSError: The block raised one.
    """
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f"{error.strerror}; {needed():,} bytes were needed, {free:,} are free; what was "
            "written before is intact",
            str(path),
        ) from error


def probe(folder: Path, option: str) -> None:
    """Refuses a folder that cannot be written to, by writing to it; leaves nothing there.

    Args:
        folder: Or the nearest one above it that is there.
        option: What chooses another one, for the message.

    Raises:
        InputError: It is a file, or a write fails; why, and how many bytes it needed.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file; choose another folder with {option}")
    try:
        with tempfile.TemporaryFile(dir=there, prefix=".", suffix=PART) as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"cannot write to {there}: {error.strerror}, {PROBE:,} bytes were needed; choose "
            f"another folder with {option}"
        ) from error
