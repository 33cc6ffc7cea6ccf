"""Replaces `os.fsync` when it is imported: no process that imports it waits for the disk.

A run flushes a hundred files, which takes longer than to train it. A process that is killed loses
nothing that it wrote, flushed or not. Whether files are flushed is checked in `tests.storage` and
by `tests.faults.disk_faults`.
"""

from __future__ import annotations

import os
from typing import Any


def _do_nothing(fd: Any) -> None:
    """Stands for `os.fsync`."""


os.fsync = _do_nothing
