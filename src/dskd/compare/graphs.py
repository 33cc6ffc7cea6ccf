"""What a comparison on graphs builds for its runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from dskd.compare.grid import Grid
from dskd.compare.own_splits import DataOfSeeds
from dskd.compare.parts import ComparisonParts
from dskd.engine.task import RunRecipe
from dskd.engine.tasks.graphs.job import (
    build_run,
    load_on,
    read_teacher,
    rehearse,
    trained_teacher,
)
from dskd.engine.tasks.graphs.settings import GraphRecipe
from dskd.engine.tasks.graphs.teacher import GraphTeacher, GraphTeacherOutputs
from dskd.engine.training_run import TrainingRun
from dskd.errors import InputError
from dskd.methods.contracts import TeacherNeeds
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import TEACHER
from dskd.teacher.outputs import TeacherOutputs


def graph_parts(grid: Grid, device: torch.device) -> ComparisonParts:
    """Loads the graphs, builds each method once, and reads a given teacher.

    Args:
        grid: The comparison.
        device: That trains.

    Raises:
        InputError: The graphs cannot be read, or a method does not fit. The message names it.
    """
    recipe: GraphRecipe = grid.recipe
    loaders = load_on(device, recipe)
    for variant in grid.variants:
        try:
            rehearse(recipe.changed(method=variant.method), loaders.data)
        except InputError as error:
            raise InputError(f"{variant.label}: {error}") from error
    learning = grid.recipe_with_teacher()
    given = learning is not None and learning.teacher.is_given
    loaders_of = DataOfSeeds(grid, loaders, partial(load_on, device))

    def train_teacher() -> GraphTeacher | None:
        if learning is None:
            return None
        folder = grid.path / TEACHER
        return trained_teacher(learning, loaders, folder, RunDirectory(folder).begun)

    def build(one: RunRecipe, outputs: TeacherOutputs, directory: RunDirectory) -> TrainingRun:
        own: Any = one  # of graphs
        return build_run(own, loaders_of(own), outputs, directory)

    return ComparisonParts(
        lambda seed: loaders_of(recipe.changed(seed=seed)).data,
        build,
        read_teacher(recipe, loaders) if given else None,
        learning is not None and not given,
        train_teacher,
        GraphTeacherOutputs,
        TeacherNeeds(logits=True),
    )
