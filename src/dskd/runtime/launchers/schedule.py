"""Run tasks by a launcher until none is left, and stop all of them cleanly."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dskd.errors import Stopped
from dskd.runtime.launchers.task import Launcher, Outcome, Running, Task
from dskd.runtime.signals import StopRequest, stop_requests

log = logging.getLogger("dskd")

POLL_SECONDS = 0.2
"""Time between two looks at the running tasks."""


def run_tasks(
    launcher: Launcher,
    next_task: Callable[[], Task | None],
    ended: Callable[[Task, Outcome], None],
    look: Callable[[], None] = lambda: None,
) -> None:
    """Runs tasks until there is none left.

    Args:
        launcher: Starts them; it is open.
        next_task: The next task to start; None if there is none for now.
        ended: Called for each task that has ended. More tasks may then be there.
        look: Called all the time while tasks run.

    Raises:
        Stopped: A signal asked for a stop, and all tasks have stopped.
    """
    running: dict[Running, Task] = {}
    with stop_requests() as stop:
        try:
            while not stop or running:
                if not stop:
                    _fill(running, launcher, next_task)
                    if not running:
                        return
                _wait(running, stop)
                for one in [one for one in running if one.done()]:
                    task, outcome = running.pop(one), one.outcome()
                    for line in outcome.warnings:
                        _log_once(line)
                    if not stop:
                        ended(task, outcome)
                look()
        finally:
            for one in running:  # after an error here, or a second signal
                one.kill()
    raise Stopped(stop.signal or 0)


def _fill(
    running: dict[Running, Task], launcher: Launcher, next_task: Callable[[], Task | None]
) -> None:
    """Starts tasks while there is room."""
    while launcher.limit is None or len(running) < launcher.limit:
        task = next_task()
        if task is None:
            return
        running[launcher.submit(task)] = task


def _wait(running: dict[Running, Task], stop: StopRequest) -> None:
    """Waits a moment. After a signal, asks all tasks to stop, and waits until they have."""
    if not stop:
        time.sleep(POLL_SECONDS)
        return
    for one in running:
        one.stop()
    while not all(one.done() for one in running):
        time.sleep(POLL_SECONDS)


_logged: set[str] = set()


def _log_once(line: str) -> None:
    """Logs a warning that many tasks may give."""
    if line not in _logged:
        _logged.add(line)
        log.warning(line)
