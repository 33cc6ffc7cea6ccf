"""What a comparison of image classifiers builds for its runs."""

from __future__ import annotations

from typing import Any

from dskd.compare.grid import Grid
from dskd.compare.group import BuildRun
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_run, build_teacher_outputs
from dskd.engine.build_model import build_model
from dskd.engine.task import RunRecipe
from dskd.engine.training_run import TrainingRun
from dskd.engine.unlabelled import teacher_loader
from dskd.engine.user_objects import UserObjects
from dskd.methods.contracts import TeacherNeeds
from dskd.storage.run_directory import RunDirectory
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs


def image_runs(loaders: DataLoaders, objects: UserObjects) -> BuildRun:
    """Builds the runs of students.

    Args:
        loaders: Of the images.
        objects: Objects in place of names.
    """

    def build(recipe: RunRecipe, outputs: TeacherOutputs, directory: RunDirectory) -> TrainingRun:
        own: Any = recipe  # of images
        student = build_model(
            own.student, loaders.data, own.seed, objects.student, objects.allow_code
        )
        return build_run(own, student, loaders, outputs, directory)

    return build


def open_outputs(
    grid: Grid, loaders: DataLoaders, teacher: FrozenTeacher | None, needs: TeacherNeeds
) -> TeacherOutputs:
    """The outputs of the teacher of a comparison; the cache is open, if there is one.

    Args:
        grid: The comparison.
        loaders: Of its images.
        teacher: The frozen teacher; None if no method needs one.
        needs: Which outputs all methods read together.
    """
    images = teacher_loader(grid.recipe.data, loaders)
    outputs = build_teacher_outputs(grid.recipe, images, teacher, needs)
    outputs.open()
    return outputs
