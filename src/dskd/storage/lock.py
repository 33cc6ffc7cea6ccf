"""Lock a folder for one process, with a system lock that is released when the process ends."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from dskd.errors import InputError
from dskd.storage.atomic import PROBE_BYTES, explain_disk_errors, make_folder, replace_file

LOCK, LOCK_PID = ".lock", ".lock.pid"
"""The lock file, and the file with the number of the process that holds the lock."""


def lock_folder(folder: Path, option: str, wait: float = 0.0) -> FileLock:
    """Creates a folder and keeps other processes out of it until the lock is released.

    Args:
        folder: The folder to lock.
        option: The option that chooses another folder, for the error message.
        wait: Seconds to wait for a process that holds the lock.

    Raises:
        InputError: Another process holds the lock; the message gives its number.
        OSError: The folder cannot be written to.

    Example:
        >>> import tempfile
        >>> lock = lock_folder(Path(tempfile.mkdtemp()), "out=")
        >>> lock.is_locked
        True
        >>> lock.release()
    """
    path = folder / LOCK
    lock = FileLock(path, timeout=wait)
    with explain_disk_errors(path, lambda: PROBE_BYTES):
        make_folder(folder)
        if path.is_symlink():  # some versions of filelock truncate the file behind a link
            path.unlink()
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{_holder(folder)} is at work in {folder}; wait for it or choose another folder "
                f"with {option}"
            ) from None
    # A file of its own: some versions of filelock truncate the lock file when they try to lock it.
    replace_file(folder / LOCK_PID, f"{os.getpid()}\n".encode())
    return lock


def _holder(folder: Path) -> str:
    """The process that holds the lock, for a message."""
    try:
        number = (folder / LOCK_PID).read_text().strip()
    except OSError:  # it has not written its number yet, or the file is not readable
        number = ""
    return f"process {number}" if number.isdigit() else "another process"
