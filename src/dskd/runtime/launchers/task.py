"""A task that is started elsewhere, and how it ended."""

from __future__ import annotations

import logging
import os
import platform
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from dskd.errors import InputError, Stopped, first_line, on_command_line, speaks_of_commands

Task = Callable[[], None]
"""The work of one process. It can be pickled, and writes its results into files."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        error: Why it did not reach its end, in one line; None if it did.
        details: The traceback of an error that is not meant for users; empty otherwise.
        warnings: The warnings that it logged.
    """

    error: str | None = None
    details: str = ""
    warnings: tuple[str, ...] = ()


def raised(error: Exception) -> Outcome:
    """The outcome of a task whose code raised an error that is not meant for users."""
    lines = traceback.format_exception(error)
    return Outcome(f"{type(error).__name__}: {first_line(error)}", "".join(lines))


@dataclass(frozen=True)
class Launched:
    """A task with what its process must know. It is called there.

    Attributes:
        task: The task.
        threads: Threads that torch uses on the CPU; None leaves the choice to torch.
        folder: The current folder of the process that launched it.
        commands: Whether messages speak of commands rather than of Python calls.
    """

    task: Task
    threads: int | None = None
    folder: Path = field(default_factory=Path.cwd)
    commands: bool = field(default_factory=speaks_of_commands)

    def __call__(self) -> Outcome:
        """Runs the task; no `Exception` leaves it."""
        warnings = _Warnings()
        log = logging.getLogger("dskd")
        level, propagate = log.level, log.propagate
        log.addHandler(warnings)
        log.setLevel(logging.WARNING)
        log.propagate = False  # the process that launched it logs the warnings
        try:
            outcome = self._run()
        finally:
            log.removeHandler(warnings)
            log.setLevel(level)
            log.propagate = propagate
        return replace(outcome, warnings=tuple(dict.fromkeys(warnings.lines)))

    def _run(self) -> Outcome:
        before = Path.cwd()
        try:
            if not self.folder.is_dir():
                raise InputError(
                    f"the folder {self.folder} is not there on {platform.node()}; start in a "
                    "folder that all machines share"
                )
            os.chdir(self.folder)
            with on_command_line() if self.commands else nullcontext(), self._cpu_threads():
                self.task()
        except Stopped:
            return Outcome("its process was asked to stop")
        except InputError as error:
            return Outcome(str(error))
        except Exception as error:  # the task is the user's code too, and others must go on
            return raised(error)
        finally:
            os.chdir(before)
        return Outcome()

    def _cpu_threads(self) -> AbstractContextManager[None]:
        if self.threads is None:
            return nullcontext()
        from dskd.runtime.cores import cpu_threads  # it imports torch

        return cpu_threads(self.threads)


class _Warnings(logging.Handler):
    """Keeps the lines of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        self.lines.append(record.getMessage())


class Running(Protocol):
    """A task that was submitted."""

    def done(self) -> bool:
        """Whether it has ended, or its process is lost."""
        ...

    def outcome(self) -> Outcome:
        """How it ended. Called once, after `done`."""
        ...

    def stop(self) -> None:
        """Asks it to save its state and to end."""
        ...

    def kill(self) -> None:
        """Ends it at once."""
        ...


class Launcher(Protocol):
    """Starts tasks elsewhere.

    Attributes:
        limit: Most tasks at a time; None for any number.
        elsewhere: Whether tasks run on other machines than this one.
    """

    @property
    def limit(self) -> int | None: ...  # noqa: D102 (see the attributes)
    @property
    def elsewhere(self) -> bool: ...  # noqa: D102

    def open(self) -> str:
        """Connects to the machines, and says in a line where tasks run.

        Raises:
            InputError: A library is missing, or there is no cluster.
        """
        ...

    def submit(self, task: Task) -> Running:
        """Starts a task, or has it wait for its turn."""
        ...

    def close(self) -> None:
        """Gives the machines back."""
        ...
