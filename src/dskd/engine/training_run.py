"""A training run: epochs that are trained, evaluated, recorded, and safe to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from dskd import methods
from dskd.engine.evaluate import Average, SplitResults, epoch_accuracies, evaluate_on_test
from dskd.engine.progress import EpochBar, epoch_bar
from dskd.engine.resume import check_same_everywhere, check_same_run, named_numbers
from dskd.engine.task import RunLoaders, RunRecipe, Task
from dskd.engine.trainer import Trainer
from dskd.errors import InputError, NonFiniteError, Stopped, Unsaved, first_line, option
from dskd.runtime import distributed
from dskd.runtime.cores import CoreWatch
from dskd.runtime.signals import stop_requests
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import BEST, NONFINITE

log = logging.getLogger("dskd")

CHECKPOINT_SHARE = 0.02
"""Maximum share of training time spent on checkpoints between the first and the last."""
_TIMES = ("seconds", "data_seconds", "teacher_seconds", "checkpoint_seconds")
"""In the metrics of every method."""


@dataclass
class Best:
    """The best epoch so far, from 1, and the accuracies that it has."""

    epoch: int = 0
    score: float = -1.0
    accuracy: float = 0.0


class TrainingRun:
    """Trains from where a run stands to its end.

    Args:
        recipe: The run.
        data: Loaders on the trainer's device.
        trainer: Fresh.
        directory: Records the run.
        task: How its students are evaluated and described.

    Attributes:
        fingerprints: Of the data and the teacher. A resumed run must have the same.
        rows: The metrics of each finished epoch.
        best: The best epoch so far.
        tested: The results of the newest epoch on the test split; None if it has none.
        checkpoint_seconds: Time spent on checkpoints since the last finished epoch.
    """

    def __init__(
        self,
        recipe: RunRecipe,
        data: RunLoaders,
        trainer: Trainer,
        directory: RunDirectory,
        task: Task,
    ) -> None:
        self.recipe, self.data, self.task = recipe, data, task
        self.trainer, self.directory = trainer, directory
        self.best = Best()
        self.tested: SplitResults | None = None
        self.rows: list[dict[str, Any]] = []
        self._saved_at: tuple[int, int] | None = None
        self._trained_seconds = self._last_cost = self.checkpoint_seconds = 0.0
        self.fingerprints = _fingerprints(trainer, data)
        directory.metric = data.data.metric

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and step of the run."""
        return self.trainer.epoch, self.trainer.step

    def begin(self, resume: bool) -> None:
        """Restores the newest checkpoint, or writes the first one.

        The first checkpoint comes before the first step, so a full disk is noticed there.

        Raises:
            InputError: All checkpoints are damaged, or recipe, data, teacher, model or the number
                of processes differ from the run's.
            OSError: The first checkpoint cannot be written.
            Unsaved: A signal asked for a stop while the method prepared itself.
        """
        check_same_everywhere(self.fingerprints, self.task.samples)
        state, damaged = self.directory.newest_checkpoint() if resume else (None, [])
        for line in damaged:
            log.warning("%s; using the one before", line)
        if state is not None:
            self._restore(state)
            epochs = self.trainer.epoch, self.trainer.epochs
            log.info("continuing %s: %d of %d epochs are done", self.directory.path, *epochs)
            _forget_lost_best(self)
        elif resume:
            log.info("%s: no checkpoint yet; it starts from its first epoch", self.directory.path)
        self.directory.rewind(self.rows)
        self.task.record_models(self, resumes=state is not None)
        if state is None:
            self._prepare_method()
        self.trainer.synchronize()
        if state is None:
            self._save_checkpoint()

    def _prepare_method(self) -> None:
        with stop_requests() as stop, self.recording_nonfinite():

            def check() -> None:
                if number := distributed.all_reduce_max(stop.signal or 0):  # of any process
                    raise Unsaved(number)

            self.trainer.prepare(check)

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            place = self.directory.path, self.task.samples
            check_same_run(state, self.recipe, self.fingerprints, *place)
            self.trainer.restore(state["trainer"])
            self.best = Best(**named_numbers(state["best"], "epoch", "score", "accuracy"))
            self.rows = [named_numbers(row, "epoch", *_TIMES) for row in state["rows"]]
        except InputError:
            raise
        except Exception as error:  # the file may hold anything, and torch raises many types
            raise InputError(
                f"the checkpoint in {self.directory.path} does not fit the model or the method as "
                f"they are now: {first_line(error)}; start again with {option('overwrite')}"
            ) from error
        self._saved_at = self.position

    def train(self) -> None:
        """Trains the remaining epochs.

        Raises:
            NonFiniteError: A number is NaN or infinite; a file in the run directory says more.
            Stopped: A signal asked for a stop; a checkpoint of the last step was written.
        """
        with stop_requests() as stop, _bar(self) as bar:
            for row in self.steps():
                bar.step()
                if row is not None:
                    bar.epoch(row)
                if number := distributed.all_reduce_max(stop.signal or 0):  # of any process
                    self.save()
                    raise Stopped(number)

    def steps(self) -> Iterator[dict[str, float] | None]:
        """Trains the remaining epochs; yields after every step, and may be left there.

        Yields:
            The epoch's metrics after its last step, None after the others.
        """
        trainer, cores = self.trainer, CoreWatch()
        while trainer.epoch < trainer.epochs:
            with self.recording_nonfinite():
                for _ in cores.watching(trainer.train_epoch()):
                    if trainer.step < trainer.steps:
                        yield None
            yield self._end_epoch()

    def _end_epoch(self) -> dict[str, float]:
        """Evaluates and records the epoch, and saves a checkpoint if one is due."""
        trainer = self.trainer
        with self.recording_nonfinite():
            trainer.check_state()
        self.tested = evaluate_run(self) if _evaluation_is_due(self) else None
        row = _epoch_row(self, self.tested)
        row["checkpoint_seconds"], self.checkpoint_seconds = round(self.checkpoint_seconds, 4), 0.0
        self._trained_seconds += trainer.seconds
        trainer.end_epoch()
        self.rows.append(row := self.directory.append(row))  # with the times of rank 0
        self._keep_best(row)  # after the row, by which `_forget_lost_best` knows of it
        if self._checkpoint_is_due():
            self._save_checkpoint()
        return row

    def _keep_best(self, row: dict[str, float]) -> None:
        if (score := _score(row)) is not None and score > self.best.score:
            self.best = Best(self.trainer.epoch, score, row["test_accuracy"])
            self.write_student(BEST)

    def write_student(self, name: str, module: nn.Module | None = None) -> None:
        """Writes the deployed student, and all that is needed to build and to feed it.

        Args:
            name: Of the file.
            module: A module in its place; None for the student itself.
        """
        method = self.trainer.method
        metadata = self.task.student_metadata(self.recipe, self.data, method)
        self.directory.write_student(name, module or method.deployed(), metadata)

    def _checkpoint_is_due(self) -> bool:
        """Whether the run is over, or a checkpoint is cheap enough."""
        cheap = self._last_cost <= CHECKPOINT_SHARE * self._trained_seconds
        return bool(distributed.all_reduce_max(cheap or self.trainer.epoch == self.trainer.epochs))

    def save(self) -> None:
        """Writes a checkpoint, unless this step has one, and closes the log."""
        if self._saved_at != self.position:
            self._save_checkpoint()
        self.directory.close()

    def _save_checkpoint(self) -> None:
        start = time.perf_counter()
        with self.recording_nonfinite():
            trainer = self.trainer.state()
        self.directory.write_checkpoint(
            {
                "epoch": self.trainer.epoch,
                "step": self.trainer.step,
                "trainer": trainer,
                "best": asdict(self.best),
                "rows": self.rows,
                "fingerprints": self.fingerprints,
                "recipe": self.recipe.plain(),
            }
        )
        self._saved_at = self.position
        self._last_cost = time.perf_counter() - start
        self.checkpoint_seconds += self._last_cost
        self._trained_seconds = 0.0

    @contextmanager
    def recording_nonfinite(self) -> Iterator[None]:
        """Writes what is known about a number that is not finite into the run directory."""
        try:
            yield
        except NonFiniteError as error:
            if error.of_one_process and distributed.world_size() > 1:  # all write together
                raise
            self.directory.write_json(NONFINITE, error.facts)
            text = f"{error}; see {self.directory.path / NONFINITE}"
            raise NonFiniteError(text, error.facts) from error


def _evaluation_is_due(run: TrainingRun) -> bool:
    """Whether the epoch that ends now is evaluated (``train.evaluate_every``)."""
    done = run.trainer.epoch + 1
    return done % run.recipe.train.evaluate_every == 0 or done == run.trainer.epochs


def _score(row: Mapping[str, float]) -> float | None:
    """What decides which epoch is the best; None for an epoch that was not evaluated."""
    return row.get("val_accuracy", row.get("test_accuracy"))


def _forget_lost_best(run: TrainingRun) -> None:
    """Forgets the best epoch if the file of its student has been replaced.

    A run that was killed may have written the student of a better epoch, after its last checkpoint.
    That epoch is trained again, elsewhere perhaps with another result.
    """
    rows: list[dict[str, Any]] = []
    with suppress(InputError):  # the file is damaged, and written anew
        rows = run.directory.rows()[len(run.rows) :]
    scores = filter(None, map(_score, rows))
    if run.best.epoch and any(score > run.best.score for score in scores):
        log.info(
            "%s may be of an epoch that is trained again; the best is chosen from epoch %d on",
            *(run.directory.path / BEST, run.trainer.epoch + 1),
        )
        run.best = Best()
        run._save_checkpoint()


def _bar(run: TrainingRun) -> AbstractContextManager[EpochBar]:
    """The progress of a run, shown while a block runs."""
    label = f"{methods.short_name(run.recipe.method.name)} {run.recipe.student.name}"
    return epoch_bar(run.trainer, label, run.data.data.metric, run.task.samples)


def evaluate_run(run: TrainingRun) -> SplitResults:
    """Evaluates the student as it is now, and its moving average, on the test split."""
    evaluate, average = run.task.evaluate, _average(run.trainer)
    return evaluate_on_test(run.trainer.method, run.data.test, average, evaluate)


def _fingerprints(trainer: Trainer, data: RunLoaders) -> dict[str, str | None]:
    teacher = trainer.teacher_outputs.teacher
    return {
        "data": data.data.fingerprint(),
        "teacher": teacher.fingerprint() if teacher is not None else None,
    }


def _average(trainer: Trainer) -> Average | None:
    return trainer.average.evaluate if trainer.average is not None else None


def _epoch_row(run: TrainingRun, tested: SplitResults | None) -> dict[str, Any]:
    """The metrics of the epoch that was just trained, but for the time of checkpoints."""
    trainer, average = run.trainer, _average(run.trainer)
    row: dict[str, Any] = {"epoch": trainer.epoch + 1, **trainer.metrics.means()}
    if tested is not None:
        evaluate = run.task.evaluate
        row |= epoch_accuracies(trainer.method, run.data.validation, tested, average, evaluate)
    row["lr"] = trainer.learning_rate(trainer.epoch)
    times = trainer.seconds, trainer.metrics.data_seconds
    row["seconds"], row["data_seconds"] = (round(seconds, 4) for seconds in times)
    row["teacher_seconds"] = round(trainer.teacher_outputs.watch.seconds, 4)
    if trainer.scaler is not None:
        row["skipped_steps"] = trainer.scaler.skipped
    if trainer.teacher_outputs.cache_counts is not None:
        row["teacher_cache_hit_rate"] = trainer.teacher_outputs.cache_counts.hit_rate
    return row
