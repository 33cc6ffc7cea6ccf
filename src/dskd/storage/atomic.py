"""Writing to disk: a file is whole or not there, and a write that fails says what it needed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from dskd.errors import InputError

PART = ".part"
"""How the names of files end that are not whole yet; they begin with a dot."""
PROBE = 4096
_PROBED = "probe"
_BUFFER = 2**20
_DAY = 86400.0


@contextmanager
def part_for(path: Path) -> Iterator[Path]:
    """Gives the name of an empty file beside ``path``, which takes its place as the block ends.

    Where the block raises, the file goes, and ``path`` is what it was before. What is to outlive a
    power cut is flushed in the block.

    Raises:
        OSError: The file could not be made or renamed.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


@contextmanager
def replacing(path: Path, verify: Callable[[IO[bytes]], None] | None = None) -> Iterator[IO[bytes]]:
    """Gives a file to write, which takes the place of ``path`` once it is whole.

    A file in the same folder is flushed to disk, verified and renamed (see `part_for`); then the
    folder is flushed. Until then ``path`` is what it was before.

    Args:
        path: The file to be written.
        verify: Reads the file back, from its start, and raises where it is not as it should be.

    Raises:
        OSError: It could not be written.
    """
    with part_for(path) as part:
        with part.open("r+b", buffering=_BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if verify is not None:
                _forget_cached(file)
                file.seek(0)
                verify(file)
        part.chmod(0o644)


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


def is_part(name: str, of: Iterable[str]) -> bool:
    """Whether a name is one that a killed write or removal leaves, of one of these files.

    Args:
        name: Of a file or folder.
        of: Names of files and folders, which may hold wildcards.

    Example:
        >>> is_part(".recipe.yaml.x0_abcde.part", ["recipe.yaml"]), is_part(".thesis.part", ["x"])
        (True, False)
    """
    ends = (f".????????{PART}", PART)  # of a write and of a removal
    return any(fnmatchcase(name, f".{one}{end}") for one in (*of, _PROBED) for end in ends)


def remove_parts(folder: Path, of: Iterable[str], age: float = 0.0) -> None:
    """Removes what killed writes and removals of these files left in a folder.

    Args:
        folder: It need not be there.
        of: See `is_part`; whatever else is there stays.
        age: What has changed in the last so many seconds stays too.
    """
    names = [*of]
    for path in [path for path in folder.glob(f".*{PART}") if is_part(path.name, names)]:
        if age and path.lstat().st_mtime > time.time() - age:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sweep(folder: Path, *of: str) -> None:
    """Removes such parts older than a day, where other processes may be writing theirs.

    What cannot be removed stays.
    """
    with suppress(OSError):
        remove_parts(folder, of, _DAY)


def refuse_links(*paths: Path) -> None:
    """Refuses links where folders of a run should be: whatever they lead to may be anybody's.

    Raises:
        InputError: One of them is a link.
    """
    for path in paths:
        if path.is_symlink():
            raise InputError(
                f"{path} is a link, and nothing is written through it; put the folder in its place"
            )


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
        there = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(there).free
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
        with tempfile.TemporaryFile(dir=there, prefix=f".{_PROBED}.", suffix=PART) as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"cannot write to {there}: {error.strerror}, {PROBE:,} bytes were needed; choose "
            f"another folder with {option}"
        ) from error
