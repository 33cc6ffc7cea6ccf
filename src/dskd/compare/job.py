"""What a job of a comparison does, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dskd.compare.grid import Grid
from dskd.compare.group import BuildRun, GroupRunner
from dskd.compare.images import image_runs, open_outputs
from dskd.compare.lockstep import RunProgress
from dskd.compare.parts import task_parts
from dskd.compare.variants import MethodVariant
from dskd.data.loader import DataLoaders
from dskd.engine.prepare import prepare
from dskd.engine.teacher_labels import training_data
from dskd.engine.train_teacher import given_teacher, trained_teacher
from dskd.engine.user_objects import UserObjects
from dskd.methods.contracts import TeacherNeeds
from dskd.runtime import device as devices
from dskd.storage.atomic import replace_file
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import FAILED, TEACHER
from dskd.teacher.outputs import TeacherOutputs

LOCK_SECONDS = 60.0
"""Time that a job waits for the folder of a run whose last process is about to end."""


@dataclass(frozen=True)
class ComparisonJob:
    """Trains runs of one seed, in a process of its own.

    Attributes:
        grid: The comparison. Its teacher is trained.
        variants: The methods of the runs.
        seed: The seed of the runs.
        objects: Objects in place of names.
        needs: Which outputs of the teacher all methods read together.
        fingerprints: Of the images and the teacher of the comparison.
    """

    grid: Grid
    variants: tuple[MethodVariant, ...]
    seed: int
    objects: UserObjects
    needs: TeacherNeeds
    fingerprints: Mapping[str, str | None]

    def __call__(self) -> None:
        """Trains the runs.

        Raises:
            InputError: A run cannot go on.
            Stopped: A signal asked for a stop; the states are saved.
        """
        with self.objects.available():
            self._train()

    def _train(self) -> None:
        device, given = _device(self.grid), dict(self.fingerprints)
        build, outputs = self._task(device) if self.grid.task else self._images(device)
        last = _Failures(), LOCK_SECONDS, given
        runner = GroupRunner(self.grid, device, build, outputs, self.needs, *last)
        runner.run(self.variants, self.seed)

    def _images(self, device: torch.device) -> tuple[BuildRun, TeacherOutputs]:
        """What builds the runs, and the outputs of the trained teacher."""
        grid, objects = self.grid, self.objects
        loaders = _loaders(grid, objects, device)
        teacher, recipe = None, grid.recipe_with_teacher()
        if recipe is not None:
            recipe = recipe.changed(teacher=grid.trained_teacher)
            prepared = prepare(recipe, loaders.data, objects, device)
            teacher = given_teacher(prepared, loaders, [])
        outputs = open_outputs(grid, loaders, teacher, self.needs)
        return image_runs(loaders, objects), outputs

    def _task(self, device: torch.device) -> tuple[BuildRun, TeacherOutputs]:
        """The same for other tasks."""
        recipe = self.grid.recipe.changed(teacher=self.grid.trained_teacher)
        parts = task_parts(replace(self.grid, recipe=recipe, variants=self.variants), device)
        return parts.build, parts.open_outputs(parts.teacher)


@dataclass(frozen=True)
class TeacherJob:
    """Trains the teacher of a comparison, on the machine on which the students will be trained.

    Attributes:
        grid: The comparison.
        objects: Objects in place of names.
    """

    grid: Grid
    objects: UserObjects

    @property
    def folder(self) -> Path:
        """The folder of the teacher's run."""
        return self.grid.path / TEACHER

    def __call__(self) -> None:
        """Trains the teacher, or continues its training.

        Raises:
            NonFiniteError: A number of the training is NaN or infinite.
            Stopped: A signal asked for a stop; the state is saved.
        """
        device = _device(self.grid)
        if self.grid.task:
            task_parts(self.grid, device).train_teacher()
            return
        with self.objects.available():
            recipe = self.grid.recipe_with_teacher()
            loaders = _loaders(self.grid, self.objects, device)
            assert recipe is not None
            prepared = prepare(recipe, loaders.data, self.objects, device)
            trained_teacher(prepared, loaders, self.folder, RunDirectory(self.folder).begun)


def _device(grid: Grid) -> torch.device:
    """The device of this process."""
    device = devices.pick(grid.recipe.train.device)
    devices.set_up(device, grid.recipe.train.precision)
    return device


def _loaders(grid: Grid, objects: UserObjects, device: torch.device) -> DataLoaders:
    """The images of a comparison on a device."""
    return DataLoaders(training_data(grid.recipe_of_all(), objects), device)


class _Failures:
    """Writes why a run failed. The process that launched the job records the rest."""

    def on_step(self, run: RunProgress) -> None:
        """Does nothing."""

    def on_end(self, run: RunProgress, failure: str | None) -> None:
        """Writes the reason."""
        if failure is not None:
            replace_file(run.folder / FAILED, f"{failure}\n".encode())
