"""The teacher of a run: given, loaded, or trained first."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from pathlib import Path

from dskd import methods
from dskd.config.schema import MethodSettings, Recipe
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_run
from dskd.engine.build_model import PROBE
from dskd.engine.fit_head import fit_head
from dskd.engine.prepare import Prepared
from dskd.engine.teacher_accuracy import evaluate_teacher
from dskd.engine.teacher_labels import label_held_out, log_labels
from dskd.engine.teacher_run import train_in_folder
from dskd.engine.teacher_split import warn_of_other_split
from dskd.engine.training_run import TrainingRun
from dskd.models.staged_model import StagedModel
from dskd.runtime import distributed
from dskd.settings import Precision
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import LAST
from dskd.storage.weights import load_weights, read_weights
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs

log = logging.getLogger("dskd")


def given_teacher(
    prepared: Prepared, data: DataLoaders, learning: Iterable[MethodSettings]
) -> FrozenTeacher | None:
    """The frozen and evaluated teacher, if it was given: a module, or one with a checkpoint.

    It is evaluated before anything is written, so that nothing is left of a run whose teacher is
    refused.

    Args:
        prepared: The run.
        data: Loaders on the device that trains.
        learning: The methods that learn from the teacher. If none reads its classes, it may have
            others, and so it is not refused.

    Returns:
        None for a method that needs no teacher, or if the run trains the teacher first.

    Raises:
        InputError: The teacher is no better than a guess, and ``teacher.trust`` is not set.
    """
    teacher, settings = prepared.teacher, prepared.recipe.teacher
    if teacher is None or teacher.training is not None or not _needs_teacher(prepared):
        return None
    assert settings is not None
    warn_of_other_split(settings.checkpoint, prepared.recipe, data.data.test_is_held_out)
    if settings.head == "fit":
        model = teacher.model.to_device(data.train.device)
        fit_head(model, settings, data.data, data.train)
    frozen = _freeze(prepared, teacher.model, data)
    if teacher.model.other_classes is not None:  # nothing to evaluate
        return frozen
    if data.data.without_labels:
        label_held_out(frozen, data)
        log_labels(data.data, settings.name)
        return frozen
    reads_classes = any(
        methods.find(one.name).reads_classes(methods.resolve(one.name, one.options))
        for one in learning
    )
    evaluate_teacher(frozen, data, settings, refuse=reads_classes and not settings.trust)
    return frozen


def trained_teacher(
    prepared: Prepared, data: DataLoaders, folder: Path, resume: bool
) -> FrozenTeacher | None:
    """Trains the teacher in ``folder``, unless it was trained there before; freezes and evaluates.

    Args:
        prepared: The run.
        data: Loaders on the device that trains.
        folder: The run directory of the teacher's own training.
        resume: Whether an interrupted training goes on.

    Returns:
        None if the run trains no teacher.

    Raises:
        InputError: The folder holds another teacher, or is in use.
        Stopped: A signal asked for a stop; the state is saved.
    """
    teacher, settings = prepared.teacher, prepared.recipe.teacher
    if teacher is None or teacher.training is None or not _needs_teacher(prepared):
        return None
    assert settings is not None
    directory = RunDirectory(folder)
    _train(teacher.training, data, directory, resume, settings.epochs is None)
    weights = distributed.on_rank_zero(read_weights)(directory.path / LAST)
    load_weights(teacher.model.module, weights, f"the teacher in {directory.path}")
    frozen = _freeze(prepared, teacher.model, data)
    evaluate_teacher(frozen, data, settings, refuse=False)
    return frozen


def _needs_teacher(prepared: Prepared) -> bool:
    return methods.find(prepared.recipe.method.name).needs_teacher


def _freeze(prepared: Prepared, model: StagedModel, data: DataLoaders) -> FrozenTeacher:
    recipe = prepared.recipe
    assert recipe.teacher is not None
    return freeze(model, data, recipe.teacher.fuse_batchnorm, recipe.train.precision)


def freeze(
    model: StagedModel, data: DataLoaders, fuse_batchnorm: bool, precision: Precision
) -> FrozenTeacher:
    """A trained model as the frozen teacher, on the device of the data."""
    model.to_device(data.train.device)
    fuse_on = data.train.probe(PROBE) if fuse_batchnorm else None
    return FrozenTeacher(model, fuse_on, bfloat16=precision == "bfloat16")


def _train(
    training: Prepared,
    data: DataLoaders,
    directory: RunDirectory,
    resume: bool,
    inherits_epochs: bool,
) -> None:
    """Trains a teacher in its directory, unless it is finished there."""

    def build(recipe: Recipe, directory: RunDirectory) -> TrainingRun:
        # A copy: training may change the module's layers, and moves it to the CPU at the end.
        student = copy.deepcopy(training.student)
        return build_run(recipe, student, data, TeacherOutputs(None), directory)

    train_in_folder(
        training.recipe.changed(out=directory.path),
        data.data.fingerprint(),
        data.train.device,
        build,
        resume,
        inherits_epochs,
    )
