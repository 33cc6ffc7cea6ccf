"""Small models, small images, and what a run is built from."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from dskd import testing
from dskd.data import Dataset
from dskd.engine.trainer import Trainer
from dskd.methods.contracts import Pair
from dskd.models.staged_model import StagedModel
from dskd.teacher.frozen import FrozenTeacher


def stop_at(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int) -> None:
    """Has a run stopped by a signal behind a step of an epoch, from 0."""
    train_epoch = Trainer.train_epoch

    def signalled(self: Trainer) -> Iterator[None]:
        for _ in train_epoch(self):
            if (self.epoch, self.step) == (epoch, step + 1):
                signal.raise_signal(signal.SIGINT)
            yield

    monkeypatch.setattr(Trainer, "train_epoch", signalled)


def make_dataset(
    classes: int = 4, per_class: int = 10, size: int = 16, channels: int = 3, seed: int = 0
) -> Dataset:
    """Images that can be learned, see `dskd.testing.sample_images`."""
    return testing.sample_images(classes, per_class, size, channels, seed)


def trusted(teacher: nn.Module | dict[str, Any]) -> dict[str, Any]:
    """A module as a teacher that a run takes untrained; settings without a module stay."""
    settings = {"module": teacher} if isinstance(teacher, nn.Module) else teacher
    return {**settings, "trust": True} if "module" in settings else settings


def staged(name: str = "resnet8", classes: int = 4, channels: int = 3) -> StagedModel:
    """A fresh network of the zoo, seen through its stages."""
    return testing.network(name, classes, channels)


def make_pair(
    student: StagedModel, teacher: StagedModel | None, data: Dataset
) -> tuple[Pair, FrozenTeacher | None]:
    """What a method's constructor takes, and the frozen teacher."""
    frozen = FrozenTeacher(teacher) if teacher is not None else None
    return testing.make_pair(student, teacher, data, few=2), frozen
