"""One training run at a time in a process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dskd.errors import InputError

_running = threading.Lock()


@contextmanager
def single_run() -> Iterator[None]:
    """Refuses other runs in this process, such as in another thread, while the block runs.

    torch's random generators belong to the process. Two runs at a time would draw from each other's
    random numbers, and their seeds would mean nothing.

    Raises:
        InputError: A run is going on.

    Example:
        >>> with single_run(), single_run():
        ...     pass
        Traceback (most recent call last):
        dskd.errors.InputError: another run is going on in this process...
    """
    if not _running.acquire(blocking=False):
        raise InputError(
            "another run is going on in this process, and both would draw from the same random "
            "generators; start one after the other, or each in a process of its own"
        )
    try:
        yield
    finally:
        _running.release()
