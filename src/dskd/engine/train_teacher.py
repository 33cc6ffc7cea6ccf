"""The teacher of a run: given, loaded, or trained first."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

from dskd import methods
from dskd.data.loader import DataLoaders
from dskd.engine.build import PROBE, build_run
from dskd.engine.finish import finish
from dskd.engine.prepare import Prepared
from dskd.engine.teacher_accuracy import evaluate_teacher
from dskd.models.staged_model import StagedModel
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.settings import Precision
from dskd.storage.atomic import refuse_links
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import LAST
from dskd.storage.weights import load_weights, read_weights
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs

log = logging.getLogger("dskd")


def get_teacher(
    prepared: Prepared, data: DataLoaders, folder: Path, resume: bool
) -> FrozenTeacher | None:
    """The frozen and evaluated teacher of a prepared run, on the device of its data.

    A teacher without a checkpoint is trained first, in ``folder``, unless it was trained there
    before.

    Args:
        prepared: The run.
        data: Loaders on the device that trains.
        folder: The run directory of the teacher's own training.
        resume: Whether an interrupted training goes on.

    Returns:
        None for a method that needs no teacher.

    Raises:
        InputError: The weights do not fit, or the folder holds another teacher, or is in use.
        Stopped: A signal asked for a stop; the state is saved.
    """
    recipe, teacher = prepared.recipe, prepared.teacher
    if teacher is None or not methods.find(recipe.method.name).needs_teacher:
        return None
    assert recipe.teacher is not None
    if teacher.training is not None:
        directory = RunDirectory(folder)
        _train(teacher.training, data, directory, resume)
        weights = distributed.on_rank_zero(read_weights)(directory.path / LAST)
        load_weights(teacher.model.module, weights, f"the teacher in {directory.path}")
    frozen = freeze(teacher.model, data, recipe.teacher.fuse_batchnorm, recipe.train.precision)
    evaluate_teacher(frozen, data, recipe.teacher.name)
    return frozen


def freeze(
    model: StagedModel, data: DataLoaders, fuse_batchnorm: bool, precision: Precision
) -> FrozenTeacher:
    """A trained model as the frozen teacher, on the device of the data."""
    model.to_device(data.train.device)
    fuse_on = data.train.probe(PROBE) if fuse_batchnorm else None
    return FrozenTeacher(model, fuse_on, bfloat16=precision == "bfloat16")


def _train(training: Prepared, data: DataLoaders, directory: RunDirectory, resume: bool) -> None:
    """Trains a teacher in its directory, unless it is finished there."""
    recipe = training.recipe.changed(out=directory.path)
    distributed.on_rank_zero(refuse_links)(directory.path)
    with directory.locked():
        directory.check_same(recipe.plain())
        if directory.finished:
            directory.check_data(data.data.fingerprint())
            return
        log.info("training the teacher %s first, in %s", recipe.student.name, directory.path)
        directory.start(recipe.plain(), devices.environment(data.train.device))
        # A copy: training may change the module's layers, and moves it to the CPU at the end.
        student = copy.deepcopy(training.student)
        run = build_run(recipe, student, data, TeacherOutputs(None), directory)
        run.begin(resume)
        run.train()
        finish(run)
