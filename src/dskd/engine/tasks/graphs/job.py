"""A run on graphs, from its recipe to the training run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from dskd.engine.seeds import seed_of_part
from dskd.engine.tasks.build import build_trainer as build_task_trainer
from dskd.engine.tasks.graphs.data import GraphData
from dskd.engine.tasks.graphs.loader import GraphLoaders
from dskd.engine.tasks.graphs.metadata import read_student_metadata
from dskd.engine.tasks.graphs.methods import METHODS, GraphMethod, GraphPair
from dskd.engine.tasks.graphs.models import (
    GraphNet,
    Shape,
    build_net,
    hidden_layers,
    other_architecture,
)
from dskd.engine.tasks.graphs.npz import refuse
from dskd.engine.tasks.graphs.recipe import RECIPES
from dskd.engine.tasks.graphs.settings import (
    Architecture,
    GraphModelSettings,
    GraphRecipe,
)
from dskd.engine.tasks.graphs.sources import load_graphs
from dskd.engine.tasks.graphs.task import GRAPHS
from dskd.engine.tasks.graphs.teacher import GraphTeacher, GraphTeacherOutputs
from dskd.engine.tasks.job import TaskJob, needs_teacher
from dskd.engine.tasks.metadata import metadata_if_any
from dskd.engine.teacher_run import train_in_folder
from dskd.engine.teacher_split import warn_of_other_split
from dskd.engine.trainer import Trainer
from dskd.engine.training_run import TrainingRun
from dskd.errors import InputError, brief
from dskd.runtime import distributed
from dskd.storage.metric_names import words
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import LAST, TEACHER
from dskd.storage.weights import load_weights, read_weights
from dskd.teacher.outputs import TeacherOutputs

log = logging.getLogger("dskd")


class GraphJob(TaskJob):
    """A run on graphs.

    Args:
        recipe: The run.
    """

    _loaders: GraphLoaders
    _teacher: GraphTeacher | None

    def __init__(self, recipe: GraphRecipe) -> None:
        super().__init__(recipe)
        self._recipe = recipe

    def check_processes(self, device: torch.device) -> None:
        """See `Job.check_processes`."""
        distributed.require_single_process("a run on graphs")

    def prepare(self, device: torch.device, *, begun: bool) -> None:
        """Loads the graphs, builds the method once, and reads a given teacher."""
        self._loaders = load_on(device, self._recipe)
        self._teacher = None
        if needs_teacher(self._recipe) and not self.trains_teacher:
            self._teacher = read_teacher(self._recipe, self._loaders)
        rehearse(self._recipe, self._loaders.data)

    def build(self, directory: RunDirectory, *, resume: bool) -> TrainingRun:
        """Trains the teacher if it is not given, and builds the run."""
        teacher = self._teacher
        if self.trains_teacher:
            folder = directory.path / TEACHER
            teacher = trained_teacher(self._recipe, self._loaders, folder, resume)
        return build_run(self._recipe, self._loaders, GraphTeacherOutputs(teacher), directory)


def load_on(device: torch.device, recipe: GraphRecipe) -> GraphLoaders:
    """The graphs of a recipe on a device.

    Raises:
        InputError: They cannot be read, or each seed is to have a split, and the file has its own.
    """
    data = load_graphs(recipe.split_data)
    if data.own_split:
        refuse(recipe.data, ("split_seed",), "the file has a split")
    for note in data.notes:
        log.info(note)
    return GraphLoaders(data, device)


def shape_of(data: GraphData) -> Shape:
    """What a network for some data is built for."""
    return Shape(data.features, len(data.classes))


def rehearse(recipe: GraphRecipe, data: GraphData) -> None:
    """Builds the method and the optimizer, so that what does not fit is refused before the run.

    Raises:
        InputError: Something does not fit.
    """
    build_trainer(recipe, GraphLoaders(data, torch.device("cpu")), GraphTeacherOutputs(None))


@dataclass(frozen=True)
class _Peers:
    """Builds the peers of a student; see `GraphPair.build_peer`."""

    settings: GraphModelSettings
    shape: Shape
    seed: int

    def __call__(self, name: Architecture | None) -> GraphNet:
        settings = self.settings if name is None else other_architecture(self.settings, name)
        return build_net(settings, self.shape, self.seed, hidden_layers(self.settings))


def build_method(recipe: GraphRecipe, data: GraphData) -> GraphMethod:
    """The recipe's method with its students, whose weights come from the seed."""
    shape, seed = shape_of(data), seed_of_part(recipe.seed, 0)
    student = build_net(recipe.student, shape, seed)
    widths = None
    if recipe.teacher is not None:
        teacher = recipe.teacher
        heads = teacher.heads if teacher.name == "gat" else 1
        widths = (teacher.hidden * heads,) * hidden_layers(teacher)
    pair = GraphPair(student, data.multilabel, _Peers(recipe.student, shape, seed), widths)
    torch.manual_seed(seed_of_part(recipe.seed, 1))
    kind: type[GraphMethod] = METHODS[RECIPES.short(recipe.method.name)]
    return kind(pair, **recipe.method.options)


def build_trainer(recipe: GraphRecipe, loaders: GraphLoaders, outputs: TeacherOutputs) -> Trainer:
    """The trainer of a recipe's schedule, on the device of the graphs."""
    method = build_method(recipe, loaders.data).to(loaders.train.device)
    loader = loaders.train.with_turns(len(method.students))
    return build_task_trainer(recipe, method, outputs, loader)


def build_run(
    recipe: GraphRecipe, loaders: GraphLoaders, outputs: TeacherOutputs, directory: RunDirectory
) -> TrainingRun:
    """A training run that can begin.

    Args:
        recipe: The run.
        loaders: Of its graphs, on the device that trains.
        outputs: Of a teacher on the same device.
        directory: Records the run.
    """
    trainer = build_trainer(recipe, loaders, outputs)
    torch.manual_seed(seed_of_part(recipe.seed, 2))
    return TrainingRun(recipe, loaders, trainer, directory, GRAPHS)


def teacher_recipe(recipe: GraphRecipe, folder: Path) -> GraphRecipe:
    """The run that trains a recipe's teacher, by labels."""
    teacher = recipe.teacher
    assert teacher is not None, "the recipe has one"
    values = {key: getattr(teacher, key) for key in GraphModelSettings.model_fields}
    return RECIPES.of_teacher(recipe, GraphModelSettings.model_construct(**values), folder)


def trained_teacher(
    recipe: GraphRecipe, loaders: GraphLoaders, folder: Path, resume: bool
) -> GraphTeacher:
    """Trains the teacher in ``folder``, unless it was trained there before, and freezes it.

    Args:
        recipe: The run.
        loaders: Of its graphs.
        folder: The run directory of the teacher's own training.
        resume: Whether an interrupted training goes on.

    Raises:
        InputError: The folder holds another teacher, or is in use.
        Stopped: A signal asked for a stop; the state is saved.
    """
    assert recipe.teacher is not None, "the recipe is checked"
    train_in_folder(
        teacher_recipe(recipe, folder),
        loaders.data.fingerprint(),
        loaders.train.device,
        lambda own, directory: build_run(own, loaders, TeacherOutputs(None), directory),
        resume,
        recipe.teacher.epochs is None,
    )
    return freeze(recipe, loaders, folder / LAST)


def read_teacher(recipe: GraphRecipe, loaders: GraphLoaders) -> GraphTeacher:
    """The frozen teacher of a checkpoint.

    Raises:
        InputError: The file cannot be read, or does not fit the settings of the teacher.
    """
    assert recipe.teacher is not None, "the recipe has one"
    assert recipe.teacher.checkpoint is not None, "it is given"
    warn_of_other_split(recipe.teacher.checkpoint, recipe, not loaders.data.own_split)
    return freeze(recipe, loaders, recipe.teacher.checkpoint)


def freeze(recipe: GraphRecipe, loaders: GraphLoaders, weights: Path) -> GraphTeacher:
    """The frozen teacher with the weights of a file, evaluated on the test split.

    Raises:
        InputError: The file cannot be read, does not fit the settings of the teacher, was trained
            for other data, or has weights whose logits are not finite.
    """
    assert recipe.teacher is not None, "the recipe has one"
    _check_knows(recipe, loaders.data, weights)
    model = GraphNet(recipe.teacher, shape_of(loaders.data))
    load_weights(model, read_weights(weights), f"teacher.checkpoint {weights}")
    teacher = GraphTeacher(model.to(loaders.train.device))
    found = GRAPHS.evaluate(
        teacher, lambda batch: {"teacher": teacher(batch).logits[batch.nodes]}, loaders.test
    )["teacher"]
    if not found.finite:
        raise InputError(f"the teacher in {weights} has logits that are not finite; give another")
    teacher.test_predictions = found.predictions
    log.info(
        "the teacher %s has a %s of %.2f %% (%d nodes)",
        *(recipe.teacher.name, words(found.metric), found.accuracy, len(loaders.test)),
    )
    return teacher


def _check_knows(recipe: GraphRecipe, data: GraphData, weights: Path) -> None:
    """Refuses a teacher that was trained for other classes, or other values of the features."""
    known = metadata_if_any(weights, read_student_metadata)
    if known is None:
        return
    for what, theirs, own in (
        ("the classes", list(known.classes), list(data.classes)),
        ("several labels for each node", known.multilabel, data.multilabel),
        ("data.normalize", known.normalize, recipe.data.normalize),
    ):
        if theirs != own:
            raise InputError(
                f"teacher.checkpoint {weights} was trained for other data: {what}: {brief(theirs)} "
                f"there, {brief(own)} here; give a teacher of the same data"
            )
