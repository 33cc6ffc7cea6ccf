"""Runs that are killed at random moments, and what they come to when they go on."""

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

FAMILY = "SIGKILL at random moments, then resumed"
COUNT, SAMPLE = 300, 15
COMPARISONS, KEEPING = 5, 4
"""One in so many cases is a comparison; one in so many runs keeps the teacher's outputs on disk."""


@dataclass(frozen=True)
class Case:
    """A run and its signals.

    Attributes:
        method: A method, or several of a comparison, parted by commas.
        keeps: Whether the teacher's outputs are kept, which a kill may leave half written.
        signals: One after the other, each to the run as it goes on; the last one kills.
        moments: When each comes, as a share of the time that the whole run takes.
    """

    method: str
    keeps: bool
    signals: tuple[signal.Signals, ...]
    moments: tuple[float, ...]


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """Every method in turn, at moments drawn from the case's number; the sample is spread."""
    names = methods.names()
    every = COUNT // SAMPLE
    for number in range(COUNT):
        draw = random.Random(number)
        method = names[(number + 2 * (number // every)) % len(names)]
        if number % COMPARISONS == COMPARISONS - 1:
            method = f"ce,{method}" if method != "ce" else "ce,kd"
        keeps = number % KEEPING == 0 and _can_keep(method)
        # The first leaves a checkpoint within an epoch, from which the second run goes on.
        signals = (signal.SIGTERM,) * draw.randint(0, 1) + (signal.SIGKILL,)
        moments = tuple(round(draw.uniform(0.02, 0.98), 3) for _ in signals)
        if whole or number % every == number // every % every:
            yield f"{number}", Case(method, keeps, signals, moments)


def _can_keep(method: str) -> bool:
    # A comparison would find what the one before it has kept; sskd's turned images are not kept.
    return "," not in method and method != "sskd" and methods.find(method).needs_teacher


def check(case: Case, folder: Path) -> str:
    """Kills a run, lets it go on to its end, and compares it with one that nothing disturbed.

    Raises:
        AssertionError: Something is not as it was, or a process failed.
    """
    seconds, expected = _undisturbed(case.method, case.keeps, folder.parent)
    arguments = _arguments(case.method, case.keeps, folder / "run", folder.parent)
    while not _killed(case, folder, arguments, seconds):
        shutil.rmtree(folder / "run")
        shutil.rmtree(folder / "kept", ignore_errors=True)
        seconds /= 2
    code, said = runs.call(arguments[1], folder)
    # A process may be killed behind its last line; then there is nothing to go on with.
    assert code == 0 or "holds a finished run" in said, said
    different = runs.differing(expected, runs.left(folder / "run"))
    assert not different, different
    return "identical"


def _killed(
    case: Case, folder: Path, arguments: tuple[list[str], list[str]], seconds: float
) -> bool:
    """Sends the signals; False where the run was over before."""
    allowed = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15)}
    for number, (which, moment) in enumerate(zip(case.signals, case.moments, strict=True)):
        code = runs.signalled(arguments[number > 0], folder, which, moment * seconds)
        if code == 0:
            return False
        assert code in allowed[which], (code, (folder / "said.txt").read_text())
    return True


def _arguments(method: str, keeps: bool, out: Path, folder: Path) -> tuple[list[str], list[str]]:
    """What starts a run, and what has it go on."""
    images = runs.images(folder / "images")
    if "," in method:
        return (runs.comparison(out, images, method),) * 2
    store = [
        "teacher.cache=features",
        "teacher.views=2",
        f"teacher.cache_dir={out.parent / 'kept'}",
    ]
    started = runs.command(out, images, method, *(store if keeps else ()))
    return started, [*started, "--resume"]


@cache
def _undisturbed(method: str, keeps: bool, folder: Path) -> tuple[float, dict[str, Any]]:
    """How long a whole run takes, and what it leaves."""
    own = folder / f"whole-{method}{'-kept' * keeps}"
    own.mkdir(exist_ok=True)
    seconds = runs.whole(_arguments(method, keeps, own / "run", folder)[0], own)
    return seconds, runs.left(own / "run")
