"""Shared by all tests: small models, small images, one thread, the order of parallel tests."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

_done: set[int] = set()
"""The process id of a worker of pytest-xdist that has run all of its tests."""


@atexit.register
def _leave() -> None:
    """Ends such a worker: to undo thousands of imports takes Python four seconds more.

    This is registered before torch and others are imported, so their handlers are called first.
    """
    if os.getpid() in _done:
        os._exit(0)


# ruff: noqa: E402
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from dskd import testing
from dskd.data import Dataset
from dskd.engine.trainer import Trainer
from dskd.methods.contracts import Pair
from dskd.models.spec import describe
from dskd.models.staged_model import StagedModel
from dskd.teacher.frozen import FrozenTeacher

# Images and networks are small here: a second thread costs more than it does.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)

# Traces, graphs and test reports are many small objects, and nearly all of them are in use: to look
# for garbage after every 700 of them takes a tenth of the time.
gc.set_threshold(20_000, 20, 20)

# pytest adds a handler to each logger that does not propagate. By a handler of this one, torch
# takes it that somebody wants a trace of every export and compilation, and spends time on it.
# Torch's own handler goes at its first message, which would then reach standard error.
_trace = logging.getLogger("torch.__trace")
_trace.propagate = True
_trace.handlers.clear()

# How long an example takes depends on what else the machine does.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips tests that need a GPU where there is none, and lets workers start with the long files.

    With ``--dist loadfile`` one worker runs all tests of a file, so that its fixtures are set up
    once. (Groups of pytest-xdist have no effect in pytest 9.2.)
    """
    no_gpu = pytest.mark.skip(reason="no GPU")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
    if hasattr(config, "workerinput"):
        seconds = defaultdict[Path, float](float)
        for item in items:
            seconds[item.path] += _seconds(item)
        items.sort(key=lambda item: -seconds[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports and collection make no garbage to speak of."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Takes what lives to the end out of garbage collection: thousands of tests, and torch."""
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Gives it back: without xdist, libraries report what is left at the end."""
    gc.unfreeze()
    if hasattr(config, "workerinput") and "coverage" not in sys.modules:  # writes at the end
        _done.add(os.getpid())


def _seconds(item: pytest.Item) -> float:
    """About how long a test takes: what its mark says, or half a second if it is slow."""
    marks = [mark for name in ("slow", "distributed") for mark in item.iter_markers(name)]
    return sum(float(mark.kwargs.get("seconds", 0.5)) for mark in marks)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache folder."""
    monkeypatch.setenv("DSKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _disk_is_not_waited_for() -> Iterator[None]:
    """A run flushes a hundred files to the disk, which takes longer than to train it.

    Whether files are flushed is checked in `tests.storage` and by `tests.faults.disk_faults`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seeds only what is there: for a GPU to come, torch keeps the seed and a stack trace."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


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
    few, labels = data.train.images[:2], data.train.labels
    frozen = FrozenTeacher(teacher) if teacher is not None else None
    pair = Pair.measured(
        student, teacher, lambda model, _: describe(model, few), labels, len(labels)
    )
    return pair, frozen
