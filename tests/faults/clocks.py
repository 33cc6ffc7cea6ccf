"""Clocks that jump by ten years, during a run or before it is resumed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.faults import runs

FAMILY = "clock jumps of ten years"
YEARS = 10 * 365.25 * 86400


@dataclass(frozen=True)
class Case:
    """A clock that jumps.

    Attributes:
        method: The method of the run.
        jump: By how many seconds.
        calls: How often the clock is read before it jumps. None for a jump between the run and
            its resumption, which changes the times of the files too.
    """

    method: str
    jump: float
    calls: int | None


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """Jumps forward and back: at the start, early, late, and before the run is resumed."""
    for method in ("dskd", "ce") if whole else ("ce",):
        for jump, word in ((YEARS, "forward"), (-YEARS, "back")):
            for calls in (0, 5, 25, None) if whole else (5, None):
                when = "before resuming" if calls is None else f"after {calls} calls"
                yield f"{method}, {word} {when}", Case(method, jump, calls)


def check(case: Case, folder: Path) -> str:
    """Compares a run under the clock with a run under a correct one.

    Raises:
        AssertionError: The run fails, or its files differ.
    """
    expected = _undisturbed(case.method, folder.parent)
    arguments = runs.command(folder / "run", runs.images(folder.parent / "images"), case.method)
    code, errors = runs.call(arguments, folder, partial(_jump, case.jump, case.calls or 0))
    assert code == 0, errors
    if case.calls is None:
        (folder / "run/result.json").unlink()
        newest = sorted((folder / "run/checkpoints").iterdir())[-1]
        newest.unlink()
        for path in (folder / "run").rglob("*"):
            os.utime(path, (time.time() + case.jump,) * 2)
        code, errors = runs.call([*arguments, "--resume"], folder)
        assert code == 0, errors
    different = runs.differing(expected, runs.left(folder / "run"))
    assert not different, different
    return "identical"


def _jump(seconds: float, calls: int) -> None:
    """Makes the clock of this process jump after a number of calls."""
    plain, plain_ns, left = time.time, time.time_ns, [calls]

    def offset() -> float:
        left[0] -= 1
        return seconds if left[0] < 0 else 0.0

    time.time = lambda: plain() + offset()
    time.time_ns = lambda: plain_ns() + int(offset() * 1e9)


@cache
def _undisturbed(method: str, folder: Path) -> dict[str, Any]:
    own = folder / f"whole-{method}"
    own.mkdir(exist_ok=True)
    runs.whole(runs.command(own / "run", runs.images(folder / "images"), method), own)
    return runs.left(own / "run")
