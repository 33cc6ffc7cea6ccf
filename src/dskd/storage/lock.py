"""One owner of a folder at a time, by a lock of the system that dies with its process."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from dskd.errors import InputError
from dskd.storage.atomic import PROBE, make_folder, replace_file, telling

LOCK, OWNER = ".lock", ".owner"


def take(folder: Path, option: str) -> FileLock:
    """Makes the folder, and keeps other processes from it until the lock is released.

    Args:
        folder: What is to be owned.
        option: What chooses another one, for the message.

    Raises:
        InputError: Another process owns it; its number is told.
        OSError: It cannot be written to.

    Example:
        >>> import tempfile
        >>> lock = take(Path(tempfile.mkdtemp()), "out=")
        >>> lock.is_locked
        True
        >>> lock.release()
    """
    path = folder / LOCK
    lock = FileLock(path, blocking=False)
    with telling(path, lambda: PROBE):
        make_folder(folder)
        if path.is_symlink():  # some versions of filelock empty what it leads to
            path.unlink()
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{_holder(folder)} is at work in {folder}; wait for it or choose another folder "
                f"with {option}"
            ) from None
    # Not in the lock's own file: some versions of filelock empty it when they try to get it.
    replace_file(folder / OWNER, f"{os.getpid()}\n".encode())
    return lock


def _holder(folder: Path) -> str:
    try:
        number = (folder / OWNER).read_text().strip()
    except OSError:  # it has just got the lock, or stands on a machine that is not ours to read
        number = ""
    return f"process {number}" if number.isdigit() else "another process"
