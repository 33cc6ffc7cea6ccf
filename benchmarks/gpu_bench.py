"""What the checks and the measures of a GPU build on: the pair, its trainers, and time."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from method_cost import noise

from dskd.config.recipe import load
from dskd.config.schema import Recipe
from dskd.data.loader import DataLoaders
from dskd.engine.build import UserObjects, build_model
from dskd.engine.cuda_graph import CudaRecorder, Recorder
from dskd.engine.run import make_method, make_teacher, make_teacher_outputs, make_training_run
from dskd.engine.trainer import Trainer
from dskd.engine.training_run import TrainingRun
from dskd.models.zoo import build
from dskd.runtime import compile as compiling
from dskd.runtime import device as devices
from dskd.storage.run_directory import RunDirectory
from dskd.teacher.outputs import TeacherOutputs

PAIR = "cifar100/resnet32x4-resnet8x4"
R = TypeVar("R")
Found = dict[str, Any]


class Calls:
    """Stands for a recorder where there is no GPU: recorded work is called anew."""

    def run(self, work: Callable[[], R]) -> R:
        """See `dskd.engine.cuda_graph.Recorder`."""
        return work()

    def record(self, work: Callable[[], R]) -> Callable[[], R]:
        """See `dskd.engine.cuda_graph.Recorder`."""
        return work


class Bench:
    """What every part builds on.

    Args:
        small: Little data, and few steps.
    """

    def __init__(self, small: bool) -> None:
        self.small = small
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        devices.set_up(self.device)
        if not self.on_gpu:
            compiling.BACKEND = "aot_eager"  # a rehearsal makes no code, which takes minutes

    @cache  # noqa: B019 (one of it in a process)
    def images(self, count: int) -> DataLoaders:
        """So many images of noise, on the device, and a fifth of that to evaluate on."""
        return DataLoaders(replace(noise(count), test=noise(count // 5).train), self.device)

    def recorder(self) -> Recorder:
        """Of steps."""
        return CudaRecorder(self.device) if self.on_gpu else Calls()

    def recipe(self, method: str, *changes: str) -> Recipe:
        """The pair's recipe, or that of a small pair."""
        pair = ("student.name=resnet8", "teacher.name=resnet14") if self.small else ()
        return load(PAIR, [f"method={{name: {method}}}", "seed=0", *pair, *changes])

    def teacher(self, plan: Recipe, data: DataLoaders) -> Any:
        """The recipe's teacher with fresh weights, frozen, on the device."""
        assert plan.teacher is not None
        torch.manual_seed(1)
        given = UserObjects(teacher=build(plan.teacher.name, num_classes=len(data.data.classes)))
        return make_teacher(plan, data, given, Path(), resume=False)

    def teacher_outputs(self, plan: Recipe, data: DataLoaders) -> TeacherOutputs:
        """The teacher's, as the recipe has them: asked for, got ahead or kept."""
        teacher = self.teacher(plan, data)
        student = build_model(plan.student, data.data, 0)
        needs = make_method(plan, data.data, student, teacher).needs
        return make_teacher_outputs(plan, data.train, teacher, needs)

    def training_run(
        self,
        method: str,
        *changes: str,
        images: int = 500,
        recorded: bool = False,
        teacher_outputs: TeacherOutputs | None = None,
        folder: Path | None = None,
    ) -> TrainingRun:
        """A run that is ready to go; without a folder it is not to come to an epoch's end."""
        plan, data = self.recipe(method, *changes), self.images(images)
        if teacher_outputs is None:
            teacher_outputs = self.teacher_outputs(plan, data)
        directory = RunDirectory(folder or Path())
        training_run = make_training_run(plan, data, UserObjects(), teacher_outputs, directory)
        if folder is not None:
            directory.rewind([])
        if recorded:
            training_run.trainer.recorder = self.recorder()
        training_run.trainer.prepare()
        return training_run

    def trainer(self, method: str, *changes: str, **others: Any) -> Trainer:
        """As `training_run`."""
        return self.training_run(method, *changes, **others).trainer

    def wait(self) -> None:
        """Until the GPU is done."""
        if self.on_gpu:
            torch.cuda.synchronize()


SMALL = {
    "crd": ["method.negatives=64"],
    "sskd": ["method.head_epochs=1"],
    "semckd": ["train.lr=0.001"],  # at its weight of 400, noise makes it diverge
}


def settings(name: str) -> list[str]:
    """What makes a method fit for a few images."""
    return SMALL.get(name, [])


def epochs(trainer: Trainer, count: int) -> None:
    """Trains so many."""
    for _ in range(count):
        for _ in trainer.train_epoch():
            pass
        trainer.end_epoch()


def difference(one: Trainer, other: Trainer) -> float:
    """The largest between what two methods hold."""
    first, second = one.method.state_dict(), other.method.state_dict()
    differences = [(first[key].double() - second[key].double()).abs().max() for key in first]
    return float(torch.stack(differences).max())


def each(names: Iterator[str] | list[str], work: Callable[[str], Found]) -> Found:
    """What a check says of each; ``ok`` where it says so of all."""
    found: Found = {}
    for name in names:
        try:
            found[name] = work(name)
        except Exception as error:  # the others are to be checked too
            found[name] = {"ok": False, "error": described(error)}
    return {"ok": all(value["ok"] for value in found.values()), "each": found}


def described(error: BaseException) -> str:
    """An error in a few lines."""
    return "".join(traceback.format_exception(error))[-1500:]


def timed(bench: Bench, work: Callable[[], object], count: int) -> float:
    """Seconds of one of many calls in a row, once warm."""
    for _ in range(3):
        work()
    bench.wait()
    start = time.perf_counter()
    for _ in range(count):
        work()
    bench.wait()
    return (time.perf_counter() - start) / count


def endless(trainer: Trainer) -> Callable[[], None]:
    """The next step, of epoch after epoch."""

    def steps() -> Iterator[None]:
        while True:
            yield from trainer.train_epoch()
            trainer.end_epoch()

    return partial(next, steps())


def again(trainer: Trainer) -> Callable[[], None]:
    """The next step, of the same epoch over and over."""

    def steps() -> Iterator[None]:
        while True:
            yield from trainer.train_epoch()
            trainer.step = 0

    return partial(next, steps())


def interleaved(bench: Bench, runners: dict[str, Callable[[], None]]) -> Found:
    """Seconds of a step of each, by turns: the median of some rounds, and all of them."""
    count, rounds = (3, 2) if bench.small else (100, 5)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            seconds[name].append(timed(bench, runner, count))
    return {
        name: {"seconds": statistics.median(values), "rounds": values}
        for name, values in seconds.items()
    }
