"""Tasks for processes of their own. Nothing here imports torch, so these processes start fast."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dskd.errors import InputError, Stopped, option
from dskd.runtime.launchers.task import Task

SECONDS = 60.0


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@dataclass(frozen=True)
class Writes:
    """Writes the number of its process, and prints."""

    path: Path

    def __call__(self) -> None:
        print("this is no outcome")
        logging.getLogger("dskd").warning("half of the images are gray")
        self.path.write_text(str(os.getpid()))


@dataclass(frozen=True)
class Meets:
    """Ends only if another task runs at the same time."""

    own: Path
    other: Path

    def __call__(self) -> None:
        self.own.touch()
        wait_for(self.other.exists)


@dataclass(frozen=True)
class WaitsForStop:
    """Trains, so to say, until it is asked to stop, and saves then."""

    path: Path

    def __call__(self) -> None:
        asked: list[int] = []

        def handle(number: int, _frame: FrameType | None) -> None:
            asked.append(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)
        self.path.write_text("at work")
        wait_for(lambda: bool(asked))
        self.path.write_text("saved")
        raise Stopped(asked[0])


def is_refused() -> None:
    raise InputError(f"the student is not there; give {option('student', 'MODEL')}")


def fails() -> None:
    raise KeyError("weights")


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_at_work(task: WaitsForStop) -> bool:
    return task.path.is_file() and task.path.read_text() == "at work"


def queue(*tasks: Task) -> Callable[[], Task | None]:
    left = list(tasks)
    return lambda: left.pop(0) if left else None
