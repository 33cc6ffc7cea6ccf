"""A run in progress: the trainer's epochs, evaluated, recorded, and safe to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import nn

from dskd.config.schema import Recipe
from dskd.data.loader import DataLoaders
from dskd.engine.evaluate import EvaluationResult, evaluate_accuracy
from dskd.engine.progress import epoch_bar
from dskd.engine.trainer import Trainer
from dskd.errors import InputError, NonFiniteError, Stopped, Unsaved, brief, first_line
from dskd.methods.base import Method
from dskd.runtime import distributed
from dskd.runtime.nonfinite import nonfinite_logits_error
from dskd.runtime.signals import stop_requests
from dskd.settings import Number, Percent, Size
from dskd.storage.diff import differences
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import BEST, LAST, NONFINITE

log = logging.getLogger("dskd")

SHARE = 0.02
"""Of the training time, at most, goes into checkpoints between the first and the last."""
_TIMES = ("seconds", "teacher_seconds", "checkpoint_seconds")
"""What a row of metrics has whatever the method."""


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        path: The run's folder.
        student: The deployed student as of the last epoch, on the CPU, in eval mode.
        method: The method's name.
        parameters: Of the deployed student.
        test_accuracy: Top-1 on the test split after the last epoch, in percent.
        test_accuracy_top5: Top-5 on the test split after the last epoch, in percent.
        best_test_accuracy: Top-1 on the test split after the best epoch, in percent.
        best_epoch: From 1.
        best_chosen_on: ``validation`` where images were held out; else ``test``, and then the
            best accuracy is an optimistic figure.
        teacher_accuracy: The teacher's top-1 on the test split, None without a teacher.
        agreement: Share of the test images that student and teacher give the same class, in
            percent, None without a teacher.
        seconds: Spent in training steps.
        teacher_seconds: The teacher's part of them.
        checkpoint_seconds: Spent on checkpoints.
        teacher_cache_hit_rate: Share of the images whose answer was kept from before (``teacher.cache``),
            None where none are kept.
        extra_parameters: Trained beside the student, and not deployed.
        memory: Bytes that a training step holds, see `dskd.engine.trainer.Trainer`.
    """

    path: Path
    student: nn.Module = field(repr=False)
    method: str
    parameters: Size
    test_accuracy: Percent
    test_accuracy_top5: Percent
    best_test_accuracy: Percent
    best_epoch: Size
    best_chosen_on: Literal["validation", "test"]
    teacher_accuracy: Percent | None
    agreement: Percent | None
    seconds: Number
    teacher_seconds: Number
    checkpoint_seconds: Number
    teacher_cache_hit_rate: Number | None
    extra_parameters: Size
    memory: Size

    def numbers(self) -> dict[str, Any]:
        """All but the student and the folder, as ``result.json`` holds them."""
        return {key: value for key, value in vars(self).items() if key not in ("path", "student")}


@dataclass
class Best:
    """The best epoch so far, from 1, by the accuracy that chooses it."""

    epoch: int = 0
    score: float = -1.0
    accuracy: float = 0.0


class TrainingRun:
    """Trains from where a run stands to its end.

    Args:
        recipe: The run.
        images: All splits, on the trainer's device.
        trainer: The method at work, fresh.
        directory: Where it is recorded.
    """

    def __init__(
        self, recipe: Recipe, images: DataLoaders, trainer: Trainer, directory: RunDirectory
    ) -> None:
        self.recipe, self.trainer, self.directory = recipe, trainer, directory
        self.data, self.test, self.validation = images.data, images.test, images.validation
        self.best = Best()
        self.rows: list[dict[str, Any]] = []
        self._saved: tuple[int, int] | None = None
        self._trained = self._last_cost = self._cost = 0.0
        teacher = trainer.teacher_outputs.teacher
        self.given = {
            "data": self.data.fingerprint(),
            "teacher": teacher.fingerprint() if teacher is not None else None,
        }

    def begin(self, resume: bool) -> None:
        """Goes back to the run's newest checkpoint, or writes its first one.

        So a disk that cannot hold a run says so before the first step.

        Raises:
            InputError: Every checkpoint is damaged, or recipe, images, teacher, model or the number
                of processes are not the run's.
            OSError: The first checkpoint cannot be written.
            Unsaved: A signal asked for a stop while the method prepared itself.
        """
        if any(given != self.given for given in distributed.all_gather(self.given)):
            raise InputError(
                "the processes of this run have different images or teachers; give the same "
                "files to every machine"
            )
        state, damaged = self.directory.newest_checkpoint() if resume else (None, [])
        for line in damaged:
            log.warning("%s; using the one before", line)
        if state is not None:
            self._restore(state)
            log.info("continuing %s after %d epochs", self.directory.path, self.trainer.epoch)
        elif resume:
            log.info("%s has no checkpoint yet: starting anew", self.directory.path)
        self.directory.rewind(self.rows)
        method = self.trainer.method
        if state is None:
            self._prepare()
        distributed.broadcast([*method.parameters(), *method.buffers()])
        if state is None:
            self._save_checkpoint()

    def _prepare(self) -> None:
        with stop_requests() as stop, self._record_nonfinite():

            def check() -> None:
                if number := distributed.all_reduce_max(stop.signal or 0):  # of any process
                    raise Unsaved(number)

            self.trainer.prepare(check)

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self._check_same(state)
            self.trainer.restore(state["trainer"])
            self.best = Best(**_numbers(state["best"], "epoch", "score", "accuracy"))
            self.rows = [_numbers(row, "epoch", *_TIMES) for row in state["rows"]]
        except InputError:
            raise
        except Exception as error:  # a state may be anybody's, and torch raises what it likes
            raise InputError(
                f"the checkpoint in {self.directory.path} does not fit the model or the method as "
                f"they are now: {first_line(error)}; start again with --overwrite"
            ) from error
        self._saved = self._place

    def _check_same(self, state: dict[str, Any]) -> None:
        """Refuses to go on with anything but what the run was started with."""
        path = self.directory.path
        if listed := differences(state["recipe"], self.recipe.plain()):
            raise InputError(
                f"the checkpoint in {path} is of another recipe: {listed}; start again with "
                "--overwrite"
            )
        for what, words in (("data", "other images"), ("teacher", "another teacher")):
            if state["given"][what] != self.given[what]:
                raise InputError(
                    f"{path} was started with {words}; give the same, or start again with "
                    "--overwrite"
                )
        before = len(state["trainer"]["ranks"])
        if before != distributed.world_size():
            raise InputError(
                f"{path} was started with {before} processes, and there are {distributed.world_size()}; "
                "start as many, or start again with --overwrite"
            )

    def train(self) -> None:
        """Trains the epochs that are left.

        Raises:
            NotFinite: A number of a step is NaN or infinite; the folder says more.
            Stopped: A signal asked for a stop; a checkpoint of the last step was written.
        """
        label = f"{self.recipe.method.name} {self.recipe.student.name}"
        with stop_requests() as stop, epoch_bar(self.trainer, label) as bar:
            for row in self.steps():
                bar.step()
                if row is not None:
                    bar.epoch(row["test_accuracy"])
                if number := distributed.all_reduce_max(stop.signal or 0):  # of any process
                    self.save()
                    raise Stopped(number)

    def steps(self) -> Iterator[dict[str, float] | None]:
        """Trains the epochs that are left; yields after every step, and may be left there.

        Yields:
            The epoch's metrics after its last step, None after the others.
        """
        trainer = self.trainer
        while trainer.epoch < trainer.epochs:
            with self._record_nonfinite():
                for _ in trainer.train_epoch():
                    if trainer.step < trainer.steps:
                        yield None
            yield self._end_epoch()

    def _end_epoch(self) -> dict[str, float]:
        """Judges, records, and saves where that is due."""
        trainer = self.trainer
        with self._record_nonfinite():
            trainer.check_state()
        row = {"epoch": trainer.epoch + 1, **trainer.metrics.means(), **self._evaluate()}
        row["lr"] = trainer.learning_rate(trainer.epoch)
        row["seconds"] = round(trainer.seconds, 4)
        row["teacher_seconds"] = round(trainer.teacher_outputs.watch.seconds, 4)
        row["checkpoint_seconds"], self._cost = round(self._cost, 4), 0.0
        if trainer.teacher_outputs.cache_counts is not None:
            row["teacher_cache_hit_rate"] = trainer.teacher_outputs.cache_counts.share
        self._trained += trainer.seconds
        trainer.end_epoch()
        self._keep_best(row)
        row = self.directory.append(row)  # the first process's times are the run's
        self.rows.append(row)
        if self._is_due():
            self._save_checkpoint()
        return row

    def _is_due(self) -> bool:
        """Whether the end of an epoch is worth a checkpoint: it costs little, or the run is over."""
        ended = self.trainer.epoch == self.trainer.epochs
        return bool(distributed.all_reduce_max(ended or self._last_cost <= SHARE * self._trained))

    def save(self) -> None:
        """Writes a checkpoint, unless that was just done, and closes the log."""
        if self._saved != self._place:
            self._save_checkpoint()
        self.directory.close()

    @property
    def _place(self) -> tuple[int, int]:
        return self.trainer.epoch, self.trainer.step

    @contextmanager
    def _record_nonfinite(self) -> Iterator[None]:
        """Of numbers that are not finite, leaves what is known in the folder."""
        try:
            yield
        except NonFiniteError as error:
            self.directory.write_json(NONFINITE, error.facts)
            path = self.directory.path / NONFINITE
            raise NonFiniteError(f"{error}; see {path}", error.facts) from error

    def _evaluate(self) -> dict[str, float]:
        """The accuracy of the student, and of whatever else the method trains."""
        method = self.trainer.method
        distributed.broadcast(method.buffers())
        heads = evaluate_accuracy(method, method.classifier_logits, self.test)
        student = heads.pop("student")
        row = {"test_accuracy": student.accuracy, "test_accuracy_top5": student.accuracy_top5}
        row |= {f"{name}/test_accuracy": head.accuracy for name, head in heads.items()}
        if self.validation is not None:
            held_out = evaluate_accuracy(method, method.classifier_logits, self.validation)[
                "student"
            ]
            row["val_accuracy"] = held_out.accuracy
        return row

    def _keep_best(self, row: dict[str, float]) -> None:
        score = row.get("val_accuracy", row["test_accuracy"])
        if score > self.best.score:
            self.best = Best(self.trainer.epoch, score, row["test_accuracy"])
            self._write(BEST)

    def _write(self, name: str) -> None:
        self.directory.write_student(name, self.trainer.method.deployed(), self._metadata())

    def _metadata(self) -> dict[str, Any]:
        """What is needed to build the student and to feed it."""
        student = self.trainer.method.student
        return {
            "model": self.recipe.student.name,
            "options": self.recipe.student.options,
            "classes": list(self.data.classes),
            "shape": list(self.data.shape),
            "method": self.recipe.method.name,
            "deploy_config": self.trainer.method.deploy_config(),
            "mean": student.mean.flatten().tolist(),
            "std": student.std.flatten().tolist(),
        }

    def _save_checkpoint(self) -> None:
        start = time.perf_counter()
        with self._record_nonfinite():
            trainer = self.trainer.state()
        state = {
            "epoch": self.trainer.epoch,
            "step": self.trainer.step,
            "trainer": trainer,
            "best": asdict(self.best),
            "rows": self.rows,
            "given": self.given,
            "recipe": self.recipe.plain(),
        }
        self.directory.write_checkpoint(state)
        self._saved = self._place
        self._last_cost = time.perf_counter() - start
        self._cost += self._last_cost
        self._trained = 0.0

    def finish(self) -> Result:
        """Judges the student of the last epoch, writes it and the result.

        Raises:
            NotFinite: Its logits are not finite: it names no class, and would teach nothing.
        """
        method = self.trainer.method
        student = evaluate_accuracy(method, method.classifier_logits, self.test)["student"]
        if not student.finite:
            with self._record_nonfinite():
                raise nonfinite_logits_error(self.trainer.epochs - 1, self.trainer.steps)
        self._write(LAST)
        if beside := method.auxiliary_state_dict():
            tensors = {key: value.cpu().contiguous() for key, value in beside.items()}
            self.directory.write_bytes("auxiliary.safetensors", safetensors.torch.save(tensors))
        teacher = self._evaluate_teacher()
        deployed, rows = method.deployed(), self.rows
        cost = sum(row["checkpoint_seconds"] for row in rows) + self._cost
        result = Result(
            path=self.directory.path,
            student=deployed.cpu().to(memory_format=torch.contiguous_format).eval(),
            method=self.recipe.method.name,
            parameters=sum(p.numel() for p in deployed.parameters()),
            test_accuracy=student.accuracy,
            test_accuracy_top5=student.accuracy_top5,
            best_test_accuracy=self.best.accuracy,
            best_epoch=self.best.epoch,
            best_chosen_on="validation" if self.validation is not None else "test",
            teacher_accuracy=teacher.accuracy if teacher else None,
            agreement=student.agreement(teacher) if teacher else None,
            seconds=round(sum(row["seconds"] for row in rows), 3),
            teacher_seconds=round(sum(row["teacher_seconds"] for row in rows), 3),
            checkpoint_seconds=round(distributed.on_rank_zero(lambda: cost)(), 3),
            teacher_cache_hit_rate=_mean(
                [row["teacher_cache_hit_rate"] for row in rows if "teacher_cache_hit_rate" in row]
            ),
            extra_parameters=_trained_beside(method, deployed),
            memory=self.trainer.memory,
        )
        self.directory.write_json("result.json", result.numbers() | {"given": self.given})
        self.directory.close()
        return result

    def _evaluate_teacher(self) -> EvaluationResult | None:
        teacher = self.trainer.teacher_outputs.teacher
        if teacher is None:
            return None
        return evaluate_accuracy(
            teacher, lambda images: {"teacher": teacher(images).logits}, self.test
        )["teacher"]


def _numbers(values: Any, *needed: str) -> dict[str, Any]:
    """Named numbers, as a checkpoint holds them.

    Raises:
        TypeError: They are something else, or one that is needed is not there.
    """
    if missing := set(needed) - values.keys():
        raise TypeError(f"{min(missing)} is missing")
    for key, value in values.items():
        if type(key) is not str or type(value) not in (int, float):
            raise TypeError(f"{brief(key)} is no number")
    return dict(values)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _trained_beside(method: Method, deployed: nn.Module) -> int:
    """How many of the method's trained parameters are not deployed."""
    kept = {id(parameter) for parameter in deployed.parameters()}
    trained = (p for p in method.parameters() if p.requires_grad)
    return sum(p.numel() for p in trained if id(p) not in kept)
