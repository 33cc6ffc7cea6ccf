"""Work that is lost, because its process or its machine is gone or its code fails.

It is tried again. A job that its time limit ends has trained new epochs, and goes on from there. So
work is given up only if it is lost twice without a new epoch in between.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dskd.errors import InputError
from dskd.runtime.launchers.schedule import run_tasks
from dskd.runtime.launchers.task import Launcher, Outcome, Task
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import METRICS

log = logging.getLogger("dskd")

MOST_LOSSES = 2
"""Losses in a row, without a new epoch in between, after which work is given up."""
RETRIED = "the same command tries it again"
"""What becomes of work that is given up for now."""


class Losses:
    """Counts how often the work in a folder is lost.

    Args:
        folder: Has a run, or the runs of a trial.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count, self._epochs = 0, self.epochs

    @property
    def epochs(self) -> int:
        """The epochs that are done, over all runs in the folder."""
        logs = self.folder.rglob(METRICS)
        return sum(len(RunDirectory(path.parent).rows()) for path in logs)

    def is_last(self) -> bool:
        """Counts a loss. Whether it is the last that is tolerated."""
        if (epochs := self.epochs) > self._epochs:
            self._epochs, self._count = epochs, 0
        self._count += 1
        return self._count >= MOST_LOSSES


class RunTask(Protocol):
    """A task that trains one run."""

    @property
    def folder(self) -> Path:
        """The folder of the run."""

    def __call__(self) -> None:
        """Trains the run, or continues its training."""


def run_all(tasks: Sequence[RunTask], launcher: Launcher, failure: str) -> None:
    """Runs tasks that are all needed, and tries those again that are lost.

    Args:
        tasks: The tasks.
        launcher: Starts them; it is open.
        failure: How the message starts if one is given up.

    Raises:
        InputError: One is given up.
        Stopped: A signal asked for a stop; the states are saved.
    """
    losses = {id(task): Losses(task.folder) for task in tasks}
    waiting: deque[Task] = deque(tasks)

    def ended(task: Task, outcome: Outcome) -> None:
        if outcome.error is None:
            return
        if losses[id(task)].is_last():
            if outcome.details:
                log.error("%s:\n%s", failure, outcome.details.rstrip())
            raise InputError(f"{failure}: {outcome.error}; {RETRIED}")
        waiting.append(task)

    run_tasks(launcher, lambda: waiting.popleft() if waiting else None, ended)
