"""What a trial does, in this process or in one of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel

from dskd.compare.same_inputs import check_inputs
from dskd.compare.tuning.search import Search, without_exits
from dskd.compare.tuning.study import Study
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.loader import DataLoaders
from dskd.engine import method_code
from dskd.engine.build import build_run, build_teacher_outputs
from dskd.engine.finish import finish
from dskd.engine.prepare import Prepared, prepare
from dskd.engine.run import distill
from dskd.engine.train_teacher import given_teacher, trained_teacher
from dskd.engine.training_run import TrainingRun
from dskd.engine.unlabelled import teacher_loader
from dskd.errors import InputError, NonFiniteError, Stopped
from dskd.runtime import device as devices
from dskd.runtime.cores import cpu_threads
from dskd.runtime.signals import stop_requests
from dskd.runtime.single_run import single_run
from dskd.storage.atomic import make_folder, refuse_links, replace_file
from dskd.storage.json_file import read_json
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import TEACHER
from dskd.teacher.frozen import FrozenTeacher

OUTCOME = "trial.json"
WARMUP = 4
"""No trial is pruned in the first of so many parts of its epochs."""
LOCK_SECONDS = 60.0
"""Time that a trial waits for its folder, if its last process is about to end."""


class TrialFile(BaseModel):
    """``trial.json``: what became of a trial.

    Attributes:
        state: Whether it was trained to its end.
        scores: Validation accuracy in percent after the last epoch of each finished seed.
        epochs: Epochs trained, over all seeds.
        reason: Why it failed; empty otherwise.
        details: The traceback, if it failed because code raised an error; empty otherwise.
    """

    state: Literal["complete", "pruned", "failed"]
    scores: list[float]
    epochs: int
    reason: str = ""
    details: str = ""

    @property
    def score(self) -> float | None:
        """Mean of the scores; None unless it is complete."""
        return sum(self.scores) / len(self.scores) if self.state == "complete" else None


def read_outcome(folder: Path) -> TrialFile | None:
    """What became of a trial; None if it has not ended.

    Raises:
        InputError: The file is damaged.
    """
    if not (folder / OUTCOME).is_file():
        return None
    return read_json(folder / OUTCOME, TrialFile, f"remove {folder} to have the trial made again")


def write_outcome(folder: Path, outcome: TrialFile) -> None:
    """Writes what became of a trial."""
    make_folder(folder)
    replace_file(folder / OUTCOME, (outcome.model_dump_json(indent=2) + "\n").encode())


class _Pruned(Exception):
    """The trial is not worth its remaining epochs."""


class _Misfit(Exception):
    """The values of the trial do not fit."""


@dataclass(frozen=True)
class TeacherTask:
    """Trains the teacher of a study."""

    search: Search

    @property
    def folder(self) -> Path:
        """The folder of the teacher's run."""
        return self.search.path / TEACHER

    def __call__(self) -> None:
        """Trains the teacher, or continues its training.

        Raises:
            InputError: It does not fit.
            Stopped: A signal asked for a stop; the state is saved.
        """
        recipe = without_exits(self.search.recipe)
        with self.search.objects.available(), single_run(), cpu_threads(recipe.train.threads):
            device = devices.pick(recipe.train.device)
            devices.set_up(device, recipe.train.precision)
            loaders = DataLoaders(self.search.data(), device)
            prepared = prepare(recipe, loaders.data, self.search.objects, device)
            trained_teacher(prepared, loaders, self.folder, RunDirectory(self.folder).begun)


@dataclass
class _Progress:
    """The part of a trial that is done."""

    scores: list[float] = field(default_factory=list)
    epochs: int = 0


@dataclass(frozen=True)
class TrialTask:
    """Trains the student of a trial at each seed, and reports each accuracy that is measured.

    Attributes:
        search: The study. Its teacher is trained.
        number: The trial.
        values: The values of the tuned settings as text.
        inputs: Fingerprints of the images (``data``) and the ``teacher`` of the study; empty for
            any.
    """

    search: Search
    number: int
    values: Mapping[str, str]
    inputs: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of the trial."""
        return self.search.folder(self.number)

    def __call__(self) -> None:
        """Trains the students, and writes `OUTCOME`.

        Values that do not fit, or let numbers become NaN, fail the trial.

        Raises:
            InputError: It cannot be made here and now, whatever its values. It has not ended.
            Stopped: A signal asked for a stop; the state is saved.
        """
        progress = _Progress()
        state: Literal["complete", "pruned", "failed"] = "complete"
        reason = ""
        make_folder(self.folder)
        try:
            with self._conditions():
                self._train(progress)
        except _Pruned:
            state = "pruned"
        except (_Misfit, NonFiniteError) as error:
            state, reason = "failed", str(error)
        scores, epochs = progress.scores, progress.epochs
        outcome = TrialFile(state=state, scores=scores, epochs=epochs, reason=reason)
        write_outcome(self.folder, outcome)

    @contextmanager
    def _conditions(self) -> Iterator[None]:
        threads = cpu_threads(self.search.recipe.train.threads)
        with self.search.objects.available(), single_run(), threads:
            yield

    def _train(self, progress: _Progress) -> None:
        search = self.search
        device = devices.pick(search.recipe.train.device)
        devices.set_up(device, search.recipe.train.precision)
        loaders = DataLoaders(search.data(), device)
        study = Study(search.path, search.space, warmup=search.recipe.train.epochs // WARMUP)
        teacher: FrozenTeacher | None = None
        for seed in search.seeds:
            prepared = self._prepared(seed, loaders.data, device)
            if teacher is None:
                teacher = given_teacher(prepared, loaders, [])
            self._train_seed(prepared, loaders, teacher, study, progress)

    def _prepared(self, seed: int, data: Dataset, device: torch.device) -> Prepared:
        """The run of a seed, with a step of it rehearsed.

        Raises:
            InputError: The recipe of the study cannot be prepared here either.
            _Misfit: The values do not fit.
        """
        search = self.search
        try:
            recipe = search.trial_of(self.values, seed, self.folder / f"seed{seed}")
            return prepare(recipe, data, search.objects, device)
        except (InputError, NonFiniteError) as error:
            # The study's own recipe fits. If it is refused too, the reason is this machine.
            with suppress(NonFiniteError):
                prepare(search.own_recipe, data, search.objects, device)
            raise _Misfit(str(error)) from error

    def _train_seed(
        self,
        prepared: Prepared,
        loaders: DataLoaders,
        teacher: FrozenTeacher | None,
        study: Study,
        progress: _Progress,
    ) -> None:
        """Trains one student, or continues its training."""
        recipe = prepared.recipe
        assert recipe.out is not None
        directory = RunDirectory(recipe.out)
        refuse_links(recipe.out.parent, recipe.out)
        images = teacher_loader(recipe.data, loaders)
        with ExitStack() as held:
            held.enter_context(directory.locked(LOCK_SECONDS))
            resume = directory.begun
            directory.check_same(recipe)
            if not directory.finished:
                facts = method_code.environment(recipe, loaders.train.device)
                method_code.warn_if_changed(directory.path, recipe.method.name, facts)
                directory.start(recipe.plain(), facts)
                outputs = build_teacher_outputs(recipe, images, teacher, prepared.needs)
                outputs.open()
                run = build_run(recipe, prepared.student, loaders, outputs, directory)
                check_inputs(run.fingerprints, self.inputs, "study")
                run.begin(resume)
                self._epochs(run, study, progress, last=recipe.seed == self.search.seeds[-1])
                finish(run)
            rows = directory.rows()
            progress.epochs += len(rows)
            progress.scores.append(float(rows[-1]["test_accuracy"]))

    def _epochs(self, run: TrainingRun, study: Study, progress: _Progress, *, last: bool) -> None:
        """Trains the remaining epochs of a run, and reports each that is evaluated.

        Args:
            run: Has begun.
            study: Says whether the trial is stopped. After its last epoch it is not any more.
            progress: Of the trial.
            last: Whether this is the last run of the trial.

        Raises:
            Stopped: A signal asked for a stop; the state is saved.
        """
        with stop_requests() as stop:
            for row in run.steps():
                if row is not None and "test_accuracy" in row:
                    step = progress.epochs + run.trainer.epoch
                    over = last and run.trainer.epoch == run.trainer.epochs
                    if study.report(self.number, step, row["test_accuracy"]) and not over:
                        progress.epochs += run.trainer.epoch
                        raise _Pruned
                if stop.signal is not None:
                    run.save()
                    raise Stopped(stop.signal)


@dataclass(frozen=True)
class BestTask:
    """Trains the best configuration as a run of its own, with the test split.

    Attributes:
        search: The study.
        recipe: The run.
    """

    search: Search
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        assert self.recipe.out is not None
        return self.recipe.out

    def __call__(self) -> None:
        """Trains the student, or continues its training.

        Raises:
            InputError: The run cannot be made.
            Stopped: A signal asked for a stop; the state is saved.
        """
        directory = RunDirectory(self.folder)
        if not directory.finished:
            with self.search.objects.available():
                distill(self.recipe, resume=directory.begun, objects=self.search.objects)
