"""Trainers of small students, with the optimizer that a GPU has."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from dskd import methods
from dskd.data.loader import MemoryLoader
from dskd.engine.trainer import Trainer
from dskd.models.staged_model import StagedModel
from dskd.settings import OwnOptimizer
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs
from tests.builders import make_dataset, make_pair, staged

DATA = make_dataset(classes=4, per_class=7, size=16)
SMALL: dict[str, dict[str, Any]] = {
    "crd": {"negatives": 16},
    "sskd": {"head_epochs": 1},
    "dkd": {"warmup": 2.0},
    "reviewkd": {"warmup": 2.0},
}
CPU = torch.device("cpu")


def fused(module: nn.Module, name: OwnOptimizer = "sgd") -> torch.optim.Optimizer:
    """The optimizer as a GPU has it."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(trained, 0.01, momentum=0.9, weight_decay=1e-3, fused=True)
    return torch.optim.AdamW(trained, 0.01, weight_decay=1e-3, fused=True)


def trainer(
    name: str,
    optimizer: OwnOptimizer = "sgd",
    teacher_forward: Callable[[FrozenTeacher | None], TeacherOutputs] = TeacherOutputs,
    student: Callable[[], StagedModel] = staged,
    **settings: Any,
) -> Trainer:
    torch.manual_seed(0)
    kind = methods.find(name)
    teacher = staged("resnet14") if kind.needs_teacher else None
    pair, frozen = make_pair(student(), teacher, DATA)
    method = kind(pair, **SMALL.get(name, {}) | settings)
    made = Trainer(
        method,
        teacher_forward(frozen),
        MemoryLoader(DATA.train, CPU),
        fused(method, optimizer),
        lambda epoch: 0.02 / (1 + epoch),
        seed=0,
        epochs=3,
        batch_size=4,
        padding=2,
        flip=True,
        precision="float32",
    )
    made.prepare()
    return made


def epochs(trainer: Trainer, count: int) -> list[dict[str, float]]:
    means = []
    for _ in range(count):
        for _ in trainer.train_epoch():
            pass
        means.append(trainer.metrics.means())
        trainer.end_epoch()
    return means


def assert_same_state(one: Trainer, other: Trainer) -> None:
    first, second = one.method.state_dict(), other.method.state_dict()
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    for ours, theirs in zip(
        one.optimizer.state.values(), other.optimizer.state.values(), strict=True
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def stop_at(patch: pytest.MonkeyPatch, step: int, error: type[Exception] | None = None) -> None:
    """Stops the run by Ctrl-C in this step, counted from 1 over all epochs and trained models.

    Args:
        patch: Undoes it.
        step: The step.
        error: Raised instead, as if the process had been killed.
    """
    steps = 0
    train_epoch = Trainer.train_epoch

    def stopped(self: Trainer) -> Iterator[None]:
        nonlocal steps
        for _ in train_epoch(self):
            steps += 1
            if steps == step and error is not None:
                raise error
            if steps == step:
                signal.raise_signal(signal.SIGINT)
            yield

    patch.setattr(Trainer, "train_epoch", stopped)
