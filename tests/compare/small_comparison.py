"""A small comparison to test: three methods, two seeds, a few seconds."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dskd.compare.grid import Grid, load_plan
from dskd.compare.job import ComparisonJob
from dskd.compare.lockstep import RunProgress
from dskd.runtime.launchers.task import Launched, Outcome, Task
from dskd.storage.run_files import LAST

SMALL = [
    "data.fraction=0.1",
    "teacher.name=resnet8",
    "teacher.epochs=1",
    "train.epochs=2",
    "train.batch_size=32",
]
"""A tenth of the digits: 130 images, 5 steps per epoch."""
NAMES = "ce,kd,dskd"


class Silent:
    def on_step(self, run: RunProgress) -> None: ...

    def on_end(self, run: RunProgress, failure: str | None) -> None: ...


class StopsAfter(Silent):
    """Raises a signal after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step(self, run: RunProgress) -> None:
        self.steps -= 1
        if self.steps == 0:
            signal.raise_signal(signal.SIGTERM)


def small(out: Path, names: str = NAMES, seeds: int = 2, **settings: Any) -> Grid:
    return load_plan("digits", SMALL, [names], out, seeds=seeds, **settings)


def students(out: Path) -> dict[str, bytes]:
    return {
        path.parent.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob(LAST))
    }


class Here:
    """A launcher that runs a task at once, in this process. It loses those that it is told to."""

    def __init__(self, limit: int | None, loses: Callable[[Task], bool] = lambda _: False) -> None:
        self.limit, self.loses = limit, loses
        self.elsewhere = True
        self.groups: list[list[str]] = []

    def open(self) -> str:
        return "here"

    def close(self) -> None: ...

    def submit(self, task: Task) -> Over:
        if isinstance(task, ComparisonJob):
            self.groups.append([f"{v.label} {task.seed}" for v in task.variants])
        return Over(Outcome("its node is gone") if self.loses(task) else Launched(task, 1)())


class Over:
    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def done(self) -> bool:
        return True

    def outcome(self) -> Outcome:
        return self._outcome

    def stop(self) -> None: ...

    def kill(self) -> None: ...
