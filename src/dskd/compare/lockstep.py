"""Students that learn side by side: step by step, from one answer of their teacher's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dskd.engine.training_run import TrainingRun
from dskd.errors import NonFiniteError, Stopped
from dskd.runtime.signals import stop_requests


class Watcher(Protocol):
    """Who is told how the students of a cohort do."""

    def stepped(self, student: Student) -> None:
        """A student took a step."""
        ...

    def ended(self, student: Student, failure: str | None) -> None:
        """A student is finished, or failed."""
        ...


@dataclass
class Student:
    """A run among others.

    Attributes:
        label: Of its method.
        seed: Of the run.
        session: The run.
        row: The metrics of its last whole epoch.
    """

    label: str
    seed: int
    training_run: TrainingRun
    row: dict[str, float] | None = None
    _steps: Iterator[dict[str, float] | None] = field(init=False)
    _random: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._steps = self.training_run.steps()
        self._random = _random_state()

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and step of the run."""
        return self.training_run.trainer.epoch, self.training_run.trainer.step

    def step(self) -> bool:
        """Takes a step, with random numbers of its own; False where none is left."""
        _set_random_state(self._random)
        try:
            row = next(self._steps)
        except StopIteration:
            return False
        self._random = _random_state()
        self.row = row or self.row
        return True

    def save(self) -> None:
        """Writes a checkpoint, with the random numbers of its own."""
        _set_random_state(self._random)
        self.training_run.save()


def train_together(students: list[Student], watcher: Watcher) -> None:
    """Trains students to their ends: whoever is behind takes the next step.

    So students of one seed stand at the same step, where one answer of the teacher serves all, also
    after they were stopped at different steps. What a student becomes does not depend on the
    others: each has random numbers of its own.

    Args:
        students: Each with a session that has begun.
        watcher: Told of every step and every end.

    Raises:
        Stopped: A signal asked for a stop; the state of each run is saved.
    """
    running = list(students)
    with stop_requests() as stop:
        while running:
            student = min(running, key=lambda one: one.place)
            failure, going = None, True
            try:
                going = student.step()
                if not going:
                    student.training_run.finish()
            except NonFiniteError as error:
                failure, going = str(error), False
            if going:
                watcher.stepped(student)
            else:
                running.remove(student)
                watcher.ended(student, failure)
            if stop.signal is not None:
                for one in running:
                    _save(one, watcher)
                raise Stopped(stop.signal)


def _save(student: Student, watcher: Watcher) -> None:
    """Saves a run; a GPU may say only now that it has failed."""
    try:
        student.save()
    except NonFiniteError as error:
        watcher.ended(student, str(error))


def _random_state() -> list[Tensor]:
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *gpu]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if state[1:]:
        torch.cuda.set_rng_state_all(state[1:])
