"""The state that the next step of a training depends on."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch

from dskd.data.loader import Loader
from dskd.engine.average import StudentAverage
from dskd.engine.loss_scaler import LossScaler
from dskd.engine.metrics import EpochMetrics
from dskd.engine.optimizer import load_state
from dskd.methods.base import Method
from dskd.runtime import distributed
from dskd.runtime.device import random_state, restore_random_state
from dskd.runtime.nonfinite import FiniteStateCheck
from dskd.teacher.outputs import CacheCounts, TeacherOutputs


class TrainerState:
    """The part of `dskd.engine.trainer.Trainer` that is saved and restored; see there."""

    method: Method
    teacher_outputs: TeacherOutputs
    loader: Loader
    optimizer: torch.optim.Optimizer
    metrics: EpochMetrics
    epoch: int
    step: int
    seconds: float
    memory: int
    epoch_samples: int
    average: StudentAverage | None
    scaler: LossScaler | None
    _state_check: FiniteStateCheck

    def end_epoch(self) -> None:
        """Turns to the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.epoch_samples = sum(distributed.all_gather(self.metrics.num_samples))
        self.metrics, self.seconds = EpochMetrics(), 0.0
        self.teacher_outputs.watch.set(0.0)
        self._set_cache_counts((0, 0))
        if self.scaler is not None:
            self.scaler.skipped = 0

    def check_state(self) -> None:
        """Checks that weights, buffers and optimizer state are finite.

        Raises:
            NonFiniteError: A number is NaN or infinite.
        """
        self._state_check.require(self.epoch, self.step)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on.

        Raises:
            NonFiniteError: A number of it is NaN or infinite.
        """
        self.check_state()
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "teacher_seconds": self.teacher_outputs.watch.seconds,
            "teacher_cache_counts": astuple(self.teacher_outputs.cache_counts or CacheCounts()),
            "memory": self.memory,
            "average": self.average.state() if self.average is not None else None,
            "scaler": self.scaler.state() if self.scaler is not None else None,
            "processes": distributed.all_gather(self._process_state()),
        }

    def _process_state(self) -> dict[str, Any]:
        """What differs between the processes of a run."""
        return {"metrics": self.metrics.state(), **random_state(self.loader.device)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state that as many processes saved."""
        self.method.load_state_dict(state["method"])
        load_state(self.optimizer, state["optimizer"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        own = state["processes"][distributed.rank()]
        self.metrics.restore(own["metrics"], self.loader.device)
        self.seconds = float(state["seconds"])
        self.teacher_outputs.watch.set(float(state["teacher_seconds"]))
        self._set_cache_counts(state["teacher_cache_counts"])
        self.memory = int(state["memory"])
        if self.average is not None:
            self.average.restore(state["average"])
        if self.scaler is not None:
            self.scaler.restore(state["scaler"])
        restore_random_state(own, self.loader.device)

    def _set_cache_counts(self, counts: tuple[int, int]) -> None:
        if self.teacher_outputs.cache_counts is not None:
            self.teacher_outputs.cache_counts = CacheCounts(*counts)
