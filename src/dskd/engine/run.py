"""START HERE: from a recipe to a trained student.

`distill` prepares the run, gets the teacher, trains the student, and returns the result. `train`
does the same without a teacher. The training step is in `dskd.engine.step`.
"""

from __future__ import annotations

import logging

from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_run, build_teacher_outputs
from dskd.engine.check.data import log_counts
from dskd.engine.finish import finish
from dskd.engine.more_epochs import takes_more_epochs
from dskd.engine.preflight import check_processes
from dskd.engine.prepare import Prepared, label_method, prepare, trains_teacher
from dskd.engine.result import Result
from dskd.engine.teacher_labels import training_data
from dskd.engine.train_teacher import given_teacher, trained_teacher
from dskd.engine.unlabelled import log_unlabelled, teacher_loader
from dskd.engine.user_objects import UserObjects
from dskd.errors import as_given, printable
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.runtime.cores import cpu_threads
from dskd.runtime.single_run import single_run
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import HELD_OUT_IMAGES, SKIPPED_IMAGES, TEACHER
from dskd.teacher.frozen import FrozenTeacher

log = logging.getLogger("dskd")


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    objects: UserObjects | None = None,
) -> Result:
    """Trains the recipe's student by labels alone.

    Args:
        recipe: The run. Its teacher and its method are ignored.
        resume: Continue an interrupted run, or a finished one to more epochs. If there is none,
            start a new one and say so.
        overwrite: Replace an existing run.
        objects: Objects in place of names.

    Raises:
        InputError: Something in the recipe cannot be used. Nothing is left behind.
        NonFiniteError: A number became NaN or infinite. Nothing is saved after that.
        Stopped: A signal asked for a stop. The state is saved.
    """
    recipe = recipe.changed(method=label_method(), teacher=None)
    return distill(recipe, resume=resume, overwrite=overwrite, objects=objects)


def distill(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    objects: UserObjects | None = None,
) -> Result:
    """Distils the recipe's student from its teacher by its method.

    Without ``teacher.checkpoint`` the teacher is trained first, by labels and with the recipe's
    schedule, in the folder ``teacher`` of the run. If torchrun started several processes, they
    train together (see `dskd.runtime.distributed`).

    Args:
        recipe: The run.
        resume: Continue an interrupted run, or a finished one to more epochs. If there is none,
            start a new one and say so.
        overwrite: Replace an existing run.
        objects: Objects in place of names.

    Raises:
        InputError: Something in the recipe cannot be used. Nothing is left behind.
        NonFiniteError: A number became NaN or infinite. Nothing is saved after that.
        Stopped: A signal asked for a stop. The state is saved.
        ProcessLost: Another process of the run died.
    """
    assert recipe.out is not None, "a resolved recipe has a folder"
    objects = objects or UserObjects()
    directory = RunDirectory(recipe.out, trains_teacher=trains_teacher(recipe, objects))
    device = devices.pick(recipe.train.device)
    check_processes(recipe, device)
    with single_run(), distributed.process_group(device), cpu_threads(recipe.train.threads):
        more = resume and not overwrite and takes_more_epochs(recipe, directory)
        if not more:
            directory.check(recipe.plain(), resume=resume, overwrite=overwrite)
        devices.set_up(device)
        data = distributed.local_rank_zero_first(lambda: training_data(recipe, objects))
        for note in data.notes:
            log.info(as_given(note))
        log_counts(data)
        with distributed.independently():
            prepared = prepare(recipe, data, objects, device)
        log_unlabelled(recipe, data)
        loaders = DataLoaders(data, device)
        # A run that has begun has passed this; other images or another teacher are refused later.
        learning = [] if resume and directory.begun else [recipe.method]
        teacher = given_teacher(prepared, loaders, learning)
        with directory.locked():
            # Another run may have started here while the data was read.
            if not more:
                directory.check(recipe.plain(), resume=resume, overwrite=overwrite)
            if overwrite:
                directory.clear()
            return _train(prepared, teacher, loaders, directory, resume)


def _train(
    prepared: Prepared,
    given: FrozenTeacher | None,
    data: DataLoaders,
    directory: RunDirectory,
    resume: bool,
) -> Result:
    """Trains the teacher if it is not given, then trains and evaluates the student."""
    recipe, device = prepared.recipe, data.train.device
    continues = resume and directory.begun
    if not continues:
        directory.start(recipe.plain(), devices.environment(device))
    _list_images(data.data, directory)
    teacher = given
    if teacher is None:
        teacher = trained_teacher(prepared, data, directory.path / TEACHER, resume)
    images = teacher_loader(recipe.data, data)
    outputs = build_teacher_outputs(recipe, images, teacher, prepared.needs)
    outputs.open()
    run = build_run(recipe, prepared.student, data, outputs, directory)
    run.begin(resume)
    if continues:  # not earlier: `begin` refuses a folder that belongs to another run
        directory.start(recipe.plain(), devices.environment(device))
    run.train()
    return finish(run)


def _list_images(data: Dataset, directory: RunDirectory) -> None:
    """Writes which image files were left out and which were held out."""
    held_out = data.test if data.test_is_held_out else data.validation
    listed = held_out.names if held_out is not None else ()
    for name, lines in ((SKIPPED_IMAGES, data.skipped), (HELD_OUT_IMAGES, listed)):
        if lines:
            text = "".join(f"{printable(line)}\n" for line in lines)
            directory.write_bytes(name, text.encode())
