"""Runs that are killed at random times and resumed."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dskd import methods
from tests.faults import runs

FAMILY = "SIGKILL at random times, then resume"
COUNT, SAMPLE = 300, 15
COMPARISON_EVERY, CACHE_EVERY = 5, 4
"""Every 5th case is a comparison; every 4th run caches teacher outputs on disk."""


@dataclass(frozen=True)
class Case:
    """A run and its signals.

    Attributes:
        method: A method, or the methods of a comparison, separated by commas.
        caches: Whether teacher outputs are cached. A kill may leave the cache half written.
        signals: The signals, one for each start of the run; the last one kills it.
        times: When each signal is sent, as a fraction of the duration of the whole run.
    """

    method: str
    caches: bool
    signals: tuple[signal.Signals, ...]
    times: tuple[float, ...]


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """Each method in turn, at times drawn with the number of the case as seed."""
    names = methods.names()
    every = COUNT // SAMPLE
    for number in range(COUNT):
        draw = random.Random(number)
        method = names[(number + 2 * (number // every)) % len(names)]
        if number % COMPARISON_EVERY == COMPARISON_EVERY - 1:
            method = f"ce,{method}" if method != "ce" else "ce,kd"
        caches = number % CACHE_EVERY == 0 and _can_cache(method)
        # SIGTERM leaves a checkpoint within an epoch, from which the second start resumes.
        signals = (signal.SIGTERM,) * draw.randint(0, 1) + (signal.SIGKILL,)
        times = tuple(round(draw.uniform(0.02, 0.98), 3) for _ in signals)
        if whole or number % every == number // every % every:
            yield f"{number}", Case(method, caches, signals, times)


def _can_cache(method: str) -> bool:
    # A comparison would find the cache of the one before it; sskd's rotated images are not cached.
    return "," not in method and method != "sskd" and methods.find(method).needs_teacher


def check(case: Case, folder: Path) -> str:
    """Kills a run, resumes it, and compares it with an undisturbed run.

    Raises:
        AssertionError: The runs differ, or a process failed.
    """
    seconds, expected = _undisturbed(case.method, case.caches, folder.parent)
    arguments = _arguments(case.method, case.caches, folder / "run", folder.parent)
    while not _killed(case, folder, arguments, seconds):
        shutil.rmtree(folder / "run")
        shutil.rmtree(folder / "outputs", ignore_errors=True)
        (folder / "stderr.txt").unlink()
        seconds /= 2
    code, errors = runs.call(arguments[1], folder)
    # A process may be killed after its last write; then there is nothing to resume.
    assert code == 0 or "holds a finished run" in errors, errors
    different = runs.differing(expected, runs.left(folder / "run"))
    assert not different, different
    return "identical"


def _killed(
    case: Case, folder: Path, arguments: tuple[list[str], list[str]], seconds: float
) -> bool:
    """Sends the signals; returns False if the run ended before one."""
    allowed = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15)}
    for number, (which, when) in enumerate(zip(case.signals, case.times, strict=True)):
        code = runs.signalled(arguments[number > 0], folder, which, when * seconds)
        errors = (folder / "stderr.txt").read_text()
        # A signal may come after the last write, while the process ends: the run is finished then.
        if code == 0 or (number > 0 and code == 2 and "holds a finished run" in errors):
            return False
        assert code in allowed[which], (code, errors)
    return True


def _arguments(method: str, caches: bool, out: Path, folder: Path) -> tuple[list[str], list[str]]:
    """The commands that start and resume a run."""
    images = runs.images(folder / "images")
    if "," in method:
        return (runs.comparison(out, images, method),) * 2
    cached = [
        "teacher.cache=features",
        "teacher.views=2",
        f"teacher.cache_dir={out.parent / 'outputs'}",
    ]
    started = runs.command(out, images, method, *(cached if caches else ()))
    return started, [*started, "--resume"]


@cache
def _undisturbed(method: str, caches: bool, folder: Path) -> tuple[float, dict[str, Any]]:
    """The duration of a whole run in seconds, and what it leaves."""
    own = folder / f"whole-{method}{'-cached' * caches}"
    own.mkdir(exist_ok=True)
    seconds = runs.whole(_arguments(method, caches, own / "run", folder)[0], own)
    return seconds, runs.left(own / "run")
