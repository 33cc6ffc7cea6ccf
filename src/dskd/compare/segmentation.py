"""What a comparison on images with masks builds for its runs."""

from __future__ import annotations

from typing import Any

import torch

from dskd.compare.grid import Grid
from dskd.compare.own_splits import DataOfSeeds
from dskd.compare.parts import ComparisonParts
from dskd.engine.prepare import check_device
from dskd.engine.task import RunRecipe
from dskd.engine.tasks.segmentation.job import (
    build_run,
    load_data,
    read_teacher,
    rehearse,
    trained_teacher,
)
from dskd.engine.tasks.segmentation.settings import SegmentationRecipe
from dskd.engine.training_run import TrainingRun
from dskd.errors import InputError
from dskd.methods.contracts import TeacherNeeds
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import TEACHER
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs


def segmentation_parts(grid: Grid, device: torch.device) -> ComparisonParts:
    """Reads the images, builds each method once, and reads a given teacher.

    Args:
        grid: The comparison.
        device: That trains.

    Raises:
        InputError: The images cannot be read, or a method does not fit. The message names it.
    """
    recipe: SegmentationRecipe = grid.recipe
    check_device(recipe.train, device)
    data = load_data(recipe)
    for variant in grid.variants:
        try:
            rehearse(recipe.changed(method=variant.method), data)
        except InputError as error:
            raise InputError(f"{variant.label}: {error}") from error
    data_of = DataOfSeeds(grid, data, load_data)
    learning = grid.recipe_with_teacher()
    teacher, given = None, learning is not None and learning.teacher.is_given
    if learning is not None and given:
        teacher = read_teacher(learning, data, device)

    def train_teacher() -> FrozenTeacher | None:
        if learning is None:
            return None
        folder = grid.path / TEACHER
        return trained_teacher(learning, data, folder, device, RunDirectory(folder).begun)

    def build(one: RunRecipe, outputs: TeacherOutputs, directory: RunDirectory) -> TrainingRun:
        own: Any = one  # of images with masks
        return build_run(own, data_of(own), outputs, directory, device)

    needs = TeacherNeeds(logits=True)  # outputs are computed whole, whatever is read of them
    trains = learning is not None and not given
    return ComparisonParts(
        lambda seed: data_of(recipe.changed(seed=seed)),
        build,
        teacher,
        trains,
        train_teacher,
        TeacherOutputs,
        needs,
    )
