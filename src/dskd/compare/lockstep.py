"""Training runs in lockstep, so that one forward pass of the teacher serves all their students."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dskd.engine.finish import finish
from dskd.engine.training_run import TrainingRun
from dskd.errors import NonFiniteError, Stopped
from dskd.runtime.signals import stop_requests


class RunProgress(Protocol):
    """How far a run of a comparison is.

    Attributes:
        label: Label of its method.
        seed: Its seed.
        epoch: Epochs done.
        epochs: All of its epochs.
        accuracy: Its newest test accuracy, in percent; None before there is one.
        folder: Its folder.
    """

    @property
    def label(self) -> str: ...  # noqa: D102 (see the attributes)
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def epochs(self) -> int: ...  # noqa: D102
    @property
    def accuracy(self) -> float | None: ...  # noqa: D102
    @property
    def folder(self) -> Path: ...  # noqa: D102


class Callback(Protocol):
    """Called while the runs of a comparison train."""

    def on_step(self, run: RunProgress) -> None:
        """A run has gone on: by a training step, or by more if it runs in another process."""
        ...

    def on_end(self, run: RunProgress, failure: str | None) -> None:
        """A run is finished; or has failed, for the reason given."""
        ...


@dataclass
class LockstepRun:
    """A training run that takes turns with others.

    It has a random state of its own, so that its result does not depend on the other runs.

    Attributes:
        label: Label of its method.
        seed: Its seed.
        training_run: The run, which has begun.
        accuracy: Its newest test accuracy, in percent; None before there is one.
    """

    label: str
    seed: int
    training_run: TrainingRun
    accuracy: float | None = None
    _steps: Iterator[dict[str, float] | None] = field(init=False)
    _random: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._steps = self.training_run.steps()
        self._random = _random_state()

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.training_run.trainer.epoch

    @property
    def epochs(self) -> int:
        """All of its epochs."""
        return self.training_run.trainer.epochs

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.training_run.directory.path

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and step, from 0."""
        return self.training_run.trainer.epoch, self.training_run.trainer.step

    def step(self) -> bool:
        """Takes a training step with its own random state; False if no step is left."""
        _set_random_state(self._random)
        try:
            row = next(self._steps)
        except StopIteration:
            return False
        self._random = _random_state()
        self.accuracy = (row or {}).get("test_accuracy", self.accuracy)
        return True

    def save(self) -> None:
        """Writes a checkpoint with its own random state."""
        _set_random_state(self._random)
        self.training_run.save()


def train_in_lockstep(runs: list[LockstepRun], callback: Callback) -> None:
    """Trains runs to their ends. The run with the fewest steps goes next.

    So runs of one seed reach each step together, also if they were stopped at different steps, and
    can share the teacher's outputs for its batch.

    Args:
        runs: The runs, which have begun.
        callback: Called after every step and at the end of every run.

    Raises:
        Stopped: A signal asked for a stop. A checkpoint of each run was written.
    """
    running = list(runs)
    with stop_requests() as stop:
        while running:
            run = min(running, key=lambda one: one.position)
            failure, going = None, True
            try:
                going = run.step()
                if not going:
                    finish(run.training_run)
            except NonFiniteError as error:
                failure, going = str(error), False
            if going:
                callback.on_step(run)
            else:
                running.remove(run)
                callback.on_end(run, failure)
            if stop.signal is not None:
                for one in running:
                    _save(one, callback)
                raise Stopped(stop.signal)


def _save(run: LockstepRun, callback: Callback) -> None:
    """Saves a run. A GPU may report only now that a number is not finite."""
    try:
        run.save()
    except NonFiniteError as error:
        callback.on_end(run, str(error))


def _random_state() -> list[Tensor]:
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *gpu]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if state[1:]:
        torch.cuda.set_rng_state_all(state[1:])
