"""Write files atomically, and report the bytes that a failed write needed."""

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
"""Suffix of temporary files. Their names also begin with a dot."""
PROBE_BYTES = 4096
"""Bytes that `check_writable` writes; also the estimate for writes of a few bytes."""
_PROBE = "probe"
_BUFFER_BYTES = 2**20
_DAY_SECONDS = 86400.0


@contextmanager
def part_for(path: Path) -> Iterator[Path]:
    """Creates an empty temporary file that replaces ``path`` when the block ends.

    If the block raises, the temporary file is removed and ``path`` is unchanged. The block must
    flush the file itself if it has to survive a power cut.

    Args:
        path: The file to replace.

    Yields:
        The path of the temporary file, in the same folder.

    Raises:
        OSError: The file could not be created or renamed.
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
    """Opens a file for writing that replaces ``path`` when the block ends.

    The file is flushed to disk, verified and renamed (see `part_for`), then the folder is flushed.
    Until the file is renamed, ``path`` is unchanged.

    Args:
        path: The file to replace.
        verify: Reads the file from its start and raises if the content is wrong.

    Yields:
        The open temporary file.

    Raises:
        OSError: The file could not be written.
    """
    with part_for(path) as part:
        with part.open("r+b", buffering=_BUFFER_BYTES) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if verify is not None:
                _drop_page_cache(file)
                file.seek(0)
                verify(file)
        part.chmod(0o644)


def _drop_page_cache(file: IO[bytes]) -> None:
    """Makes the next read come from the disk, on systems that support this."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path``: either all of it is written, or the old content stays.

    Args:
        path: The file to create or replace.
        data: The new content.

    Raises:
        OSError: The write failed; see `explain_disk_errors`.
    """
    with explain_disk_errors(path, lambda: len(data)), replacing(path) as file:
        file.write(data)


def make_folder(folder: Path) -> None:
    """Creates a folder, and flushes its parent so that the folder survives a power cut.

    Args:
        folder: The folder; nothing happens if it exists.

    Raises:
        OSError: The folder could not be created.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _flush_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Removes a folder and its content. Other processes see all of it or nothing.

    Args:
        folder: The folder. Of a link, only the link is removed.
    """
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        doomed = folder.with_name(f".{folder.name}{PART}")
        remove_folder(doomed)  # left behind if an earlier removal was killed
        folder.rename(doomed)
        shutil.rmtree(doomed)


def is_part(name: str, of: Iterable[str]) -> bool:
    """Whether a name is that of a temporary file which a killed write or removal left behind.

    Args:
        name: The name of a file or folder.
        of: The names of the final files and folders; they may hold wildcards.

    Example:
        >>> is_part(".recipe.yaml.x0_abcde.part", ["recipe.yaml"]), is_part(".thesis.part", ["x"])
        (True, False)
    """
    suffixes = (f".????????{PART}", PART)  # after a write, after a removal
    return any(fnmatchcase(name, f".{one}{end}") for one in (*of, _PROBE) for end in suffixes)


def remove_parts(folder: Path, of: Iterable[str], min_age: float = 0.0) -> None:
    """Removes the temporary files that killed writes and removals left in a folder.

    Args:
        folder: The folder; it need not exist.
        of: See `is_part`. Everything else in the folder stays.
        min_age: Files that were changed in the last ``min_age`` seconds stay.
    """
    names = [*of]
    for path in [path for path in folder.glob(f".*{PART}") if is_part(path.name, names)]:
        if min_age and path.lstat().st_mtime > time.time() - min_age:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sweep(folder: Path, *of: str) -> None:
    """Removes temporary files that are older than a day.

    For folders into which other processes may be writing. Files that cannot be removed stay.

    Args:
        folder: The folder; it need not exist.
        *of: See `is_part`.
    """
    with suppress(OSError):
        remove_parts(folder, of, _DAY_SECONDS)


def refuse_links(*paths: Path) -> None:
    """Refuses symbolic links in place of a run's folders, because a link may lead anywhere.

    Args:
        *paths: The folders; they need not exist.

    Raises:
        InputError: One of the paths is a link.
    """
    for path in paths:
        if path.is_symlink():
            raise InputError(
                f"{path} is a link, and nothing is written through it; put the folder in its place"
            )


@contextmanager
def explain_disk_errors(path: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Adds the file and the number of bytes that were needed to an error of the disk.

    Args:
        path: The file that the block writes.
        needed: Returns the size of the file in bytes. Called only after a failure.

    Raises:
        OSError: The block raised one.

    Example:
        >>> with explain_disk_errors(Path("model.pth"), lambda: 2048):
        ...     raise OSError(28, "No space left on device")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device; 2,048 bytes were needed, ...
    """
    try:
        yield
    except OSError as error:
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(existing).free
        raise OSError(
            error.errno,
            f"{error.strerror}; {needed():,} bytes were needed, {free:,} are free; what was "
            "written before is intact",
            str(path),
        ) from error


def check_writable(folder: Path, option: str) -> None:
    """Refuses a folder that cannot be written to, by writing to it. Leaves no file behind.

    Args:
        folder: The folder. If it does not exist, the nearest existing parent is tested.
        option: The option that chooses another folder, for the error message.

    Raises:
        InputError: The path is a file, or a write fails; the message gives the reason.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is a file; choose another folder with {option}")
    try:
        with tempfile.TemporaryFile(dir=existing, prefix=f".{_PROBE}.", suffix=PART) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"cannot write to {existing}: {error.strerror}, {PROBE_BYTES:,} bytes were needed; "
            f"choose another folder with {option}"
        ) from error
