"""The processor cores: how many threads a run uses, and whether it gets the cores."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import torch

log = logging.getLogger("dskd")
T = TypeVar("T")

WINDOW_SECONDS = 15.0
"""Time over which waiting is measured."""
TOLERATED = 0.3
"""Share of the time that threads may wait for a core before a warning."""
SILENCE_SECONDS = 600.0
"""Least time between two warnings."""
_NANOSECONDS = 1e-9


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Has torch use this many threads on the CPU within the block; None leaves them as they are.

    Example:
        >>> with cpu_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def times() -> tuple[float, float]:
    """Seconds that all threads of this process have run, and have waited for a core.

    Linux counts both. Elsewhere no waiting is known.
    """
    run = waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            own_run, own_waited, _ = path.read_text().split()
        except (OSError, ValueError):  # the thread has ended
            continue
        run, waited = run + int(own_run), waited + int(own_waited)
    return run * _NANOSECONDS, waited * _NANOSECONDS


def waiting_share(before: tuple[float, float], after: tuple[float, float]) -> float:
    """The share of the time between two `times` that the threads waited for a core.

    Example:
        >>> waiting_share((1.0, 0.0), (4.0, 1.0))
        0.25
    """
    run, waited = (max(0.0, new - old) for new, old in zip(after, before, strict=True))
    return waited / max(run + waited, 1e-9)


class CoreWatch:
    """Warns if a run on the CPU has to wait for cores that other work takes.

    Args:
        read: Returns the times of this process, as `times` does.
        clock: Returns the time in seconds.
    """

    _warned = -SILENCE_SECONDS
    """Time of the last warning of any watch."""

    def __init__(
        self,
        read: Callable[[], tuple[float, float]] = times,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._clock = read, clock
        self._since, self._before = clock(), read()

    def watching(self, steps: Iterable[T]) -> Iterator[T]:
        """The steps of a run, with a `check` after each."""
        for step in steps:
            self.check()
            yield step

    def check(self) -> None:
        """Logs a warning if the threads waited too long; does nothing until the window is over."""
        now = self._clock()
        if now - self._since < WINDOW_SECONDS:
            return
        current = self._read()
        share = waiting_share(self._before, current)
        self._since, self._before = now, current
        if share <= TOLERATED or now - CoreWatch._warned < SILENCE_SECONDS:
            return
        CoreWatch._warned = now
        threads = torch.get_num_threads()
        log.warning(
            "this run waits for a processor core %.0f %% of the time, because more work runs than "
            "there are cores (%d); stop other programs%s",
            *(100 * share, psutil.cpu_count() or 1),
            f", or start the next run with train.threads below {threads}" if threads > 1 else "",
        )
