"""Measure how long models take, in turns and on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dskd.runtime.number_text import rounded

SECONDS = 1.0
"""Time for each model, unless a few calls take longer."""
_FEWEST, _MOST = 5, 100


@dataclass(frozen=True)
class Latency:
    """The time of a call in milliseconds.

    Attributes:
        median: The median.
        low: The first quartile.
        high: The third quartile.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{rounded(self.median)} ({rounded(self.low)} to {rounded(self.high)})"


def measure_latency(
    calls: Mapping[str, Callable[[], object]], seconds: float | None = None
) -> dict[str, Latency]:
    """Times calls in turns, so that other work on the machine slows all of them alike.

    Args:
        calls: What is timed, by name. Each is called once before.
        seconds: Time for each; None for `SECONDS`.

    Returns:
        Median and quartiles of at least 5 and at most 100 calls.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    begun, budget = time.perf_counter(), (SECONDS if seconds is None else seconds) * len(calls)
    for done in range(_MOST):
        if done >= _FEWEST and time.perf_counter() - begun > budget:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: _summary(found) for name, found in times.items()}


def _summary(times: list[float]) -> Latency:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, low, high)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread. Several threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
