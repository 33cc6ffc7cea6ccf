"""Clocks that jump by ten years, within a run and between its parts."""

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
        method: Of the run.
        jump: Seconds.
        asked: How often the clock is asked before it jumps; None for a jump, of the files' times
            too, between a run that stops and the one that goes on.
    """

    method: str
    jump: float
    asked: int | None


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """Both ways, at once, early, late, to and fro, and between two parts of a run."""
    for method in ("dskd", "ce") if whole else ("ce",):
        for jump, word in ((YEARS, "forward"), (-YEARS, "back")):
            for asked in (0, 5, 25, None) if whole else (5, None):
                when = "between the parts" if asked is None else f"after {asked} questions"
                yield f"{method}, {word} {when}", Case(method, jump, asked)


def check(case: Case, folder: Path) -> str:
    """Runs under the clock, and compares with a run under one that goes on as it should.

    Raises:
        AssertionError: It fails, or leaves anything else.
    """
    expected = _undisturbed(case.method, folder.parent)
    arguments = runs.command(folder / "run", runs.images(folder.parent / "images"), case.method)
    code, said = runs.call(arguments, folder, partial(_jump, case.jump, case.asked or 0))
    assert code == 0, said
    if case.asked is None:
        (folder / "run/result.json").unlink()
        newest = sorted((folder / "run/checkpoints").iterdir())[-1]
        newest.unlink()
        for path in (folder / "run").rglob("*"):
            os.utime(path, (time.time() + case.jump,) * 2)
        code, said = runs.call([*arguments, "--resume"], folder)
        assert code == 0, said
    different = runs.differing(expected, runs.left(folder / "run"))
    assert not different, different
    return "identical"


def _jump(seconds: float, asked: int) -> None:
    """Has this process's clock jump, once it was asked so often."""
    plain, plain_ns, left = time.time, time.time_ns, [asked]

    def jumped() -> float:
        left[0] -= 1
        return seconds if left[0] < 0 else 0.0

    time.time = lambda: plain() + jumped()
    time.time_ns = lambda: plain_ns() + int(jumped() * 1e9)


@cache
def _undisturbed(method: str, folder: Path) -> dict[str, Any]:
    own = folder / f"whole-{method}"
    own.mkdir(exist_ok=True)
    runs.whole(runs.command(own / "run", runs.images(folder / "images"), method), own)
    return runs.left(own / "run")
