"""A comparison in several jobs: how its runs are divided, and what a lost job costs.

A job trains runs of one seed, and shares the teacher's forward passes between them if the
comparison does. Its files are those of a comparison in one process. A job that is lost costs no
other run: each of its runs is submitted again, alone. A run that is given up (see
`dskd.compare.losses`) has a row that says why, and the same command tries it again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dskd.compare.grid import Grid
from dskd.compare.job import ComparisonJob, TeacherJob
from dskd.compare.losses import RETRIED, Losses, run_all
from dskd.compare.reader import read_failure
from dskd.compare.records import ResultRecorder, has_ended
from dskd.compare.tuning.search import Search
from dskd.compare.variants import MethodVariant
from dskd.engine.user_objects import UserObjects
from dskd.methods.contracts import TeacherNeeds
from dskd.runtime.launchers.choose import choose_launcher
from dskd.runtime.launchers.schedule import run_tasks
from dskd.runtime.launchers.task import Launcher, Outcome, Task
from dskd.storage.atomic import make_folder, replace_file
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import FAILED, LOST, METRICS

log = logging.getLogger("dskd")

JOB_FILES = "jobs"
"""The folder with the scripts and logs of Slurm's jobs."""
Group = tuple[tuple[MethodVariant, ...], int]
"""The runs of a job: their methods, and their seed."""


class RunInJob:
    """A run as another process sees it: by its files.

    Args:
        label: Label of its method.
        seed: Its seed.
        epochs: All of its epochs.
        folder: Its folder.

    Attributes:
        epoch: Epochs done, when it was last looked at.
        accuracy: Its newest test accuracy then, in percent; None before there is one.
        losses: How often its job was lost.
    """

    def __init__(self, label: str, seed: int, epochs: int, folder: Path) -> None:
        self.label, self.seed, self.epochs, self.folder = label, seed, epochs, folder
        self.epoch = 0
        self.accuracy: float | None = None
        self.losses = Losses(folder)
        self._size = 0
        self.look()

    def look(self) -> None:
        """Reads how far it is."""
        path = self.folder / METRICS
        size = path.stat().st_size if path.is_file() else 0
        if size != self._size:
            rows = RunDirectory(self.folder).rows()
            self._size, self.epoch = size, len(rows)
            self.accuracy = next(
                (row["test_accuracy"] for row in reversed(rows) if "test_accuracy" in row), None
            )


def groups(grid: Grid, limit: int | None) -> list[Group]:
    """The runs that have not ended, as they are divided into jobs: methods and their seed.

    A job has all students of a seed, if they share the teacher. If there are more jobs at a time
    than seeds, the students of a seed are dealt out to several jobs. Without a limit, each run is a
    job.

    Args:
        grid: The comparison.
        limit: Most jobs at a time.
    """
    left = {
        seed: [v for v in grid.variants if not has_ended(grid.folder(v, seed))]
        for seed in grid.seeds
    }
    seeds = sum(bool(variants) for variants in left.values())
    parts = -(-limit // max(seeds, 1)) if limit is not None and grid.share_teacher else None
    found: list[Group] = []
    for seed, variants in left.items():
        number = min(parts or len(variants), len(variants))
        found += [(tuple(variants[part::number]), seed) for part in range(number)]
    return found


def launcher_for(
    plan: Grid | Search, most: int, jobs: int | None, name: str, options: Mapping[str, Any]
) -> Launcher | None:
    """The launcher of a comparison or a study, see `dskd.runtime.launchers.choose`.

    Args:
        plan: The comparison or the study.
        most: Number of its runs or trials.
        jobs: As for `dskd.runtime.launchers.choose.choose_launcher`, like the others.
        name: Of the launcher.
        options: Of the launcher.

    Raises:
        InputError: There is no such launcher or option, or a value does not fit.
    """
    return choose_launcher(
        name,
        jobs,
        options,
        folder=plan.path / JOB_FILES,
        most=most,
        device=plan.recipe.train.device,
        threads=plan.recipe.train.threads,
    )


def train_teacher(grid: Grid, objects: UserObjects, launcher: Launcher) -> None:
    """Trains the teacher of a comparison in a job, and in another one if that is lost.

    Raises:
        InputError: It cannot be trained.
        Stopped: A signal asked for a stop; the state is saved.
    """
    run_all([TeacherJob(grid, objects)], launcher, "the teacher cannot be trained")


class Jobs:
    """Trains the runs of a comparison in jobs.

    Args:
        grid: The comparison, whose teacher is trained.
        launcher: Starts the jobs; it is open.
        recorder: Called for every run that goes on or ends.
        objects: Objects in place of names.
        needs: Which outputs of the teacher all methods read together.
        fingerprints: Of the images and the teacher of the comparison.
    """

    def __init__(
        self,
        grid: Grid,
        launcher: Launcher,
        recorder: ResultRecorder,
        objects: UserObjects,
        needs: TeacherNeeds,
        fingerprints: Mapping[str, str | None],
    ) -> None:
        self.grid, self.launcher, self.recorder, self.objects = grid, launcher, recorder, objects
        self.needs, self.fingerprints = needs, dict(fingerprints)
        self._waiting = deque(groups(grid, launcher.limit))
        epochs = grid.recipe.train.epochs
        self._left = {
            (v.label, seed): RunInJob(v.label, seed, epochs, grid.folder(v, seed))
            for variants, seed in self._waiting
            for v in variants
        }

    def train(self) -> None:
        """Trains the runs.

        Raises:
            Stopped: A signal asked for a stop; the states are saved.
        """
        for run in self._left.values():
            (run.folder / LOST).unlink(missing_ok=True)
        run_tasks(self.launcher, self._next, self._ended, self._look)

    def _next(self) -> Task | None:
        if not self._waiting:
            return None
        group = self._waiting.popleft()
        return ComparisonJob(self.grid, *group, self.objects, self.needs, self.fingerprints)

    def _look(self) -> None:
        """Records the runs that have ended, and shows how far the others are."""
        for key, run in list(self._left.items()):
            over = has_ended(run.folder)
            run.look()
            if over:
                del self._left[key]
                failed = (run.folder / FAILED).is_file()
                self.recorder.on_end(run, read_failure(run.folder) if failed else None)
            elif RunDirectory(run.folder).begun:
                self.recorder.on_step(run)

    def _ended(self, task: Task, outcome: Outcome) -> None:
        """Submits runs of a lost job again, each in a job of its own, or gives them up."""
        assert isinstance(task, ComparisonJob)
        self._look()
        for variant in reversed(task.variants):
            run = self._left.get((variant.label, task.seed))
            if run is None:
                continue
            if run.losses.is_last():
                del self._left[run.label, run.seed]
                self._give_up(run, outcome)
            else:
                self._waiting.appendleft(((variant,), task.seed))

    def _give_up(self, run: RunInJob, outcome: Outcome) -> None:
        """Writes why a run has no result yet."""
        if outcome.details:
            log.error("%s, seed %d:\n%s", run.label, run.seed, outcome.details.rstrip())
        reason = f"{outcome.error or 'its job ended too early'}; {RETRIED}"
        make_folder(run.folder)
        replace_file(run.folder / LOST, f"{reason}\n".encode())
        self.recorder.callback.on_end(run, reason)
