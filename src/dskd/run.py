"""START HERE: from a recipe to a trained student.

`train` teaches by labels, `distill` by a teacher, which is trained first where it has no
checkpoint. Both build the run's objects and hand them to a `Session`, which trains and records.
"""

from __future__ import annotations

import copy
import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dskd import device as devices
from dskd import methods
from dskd.answers import Answers
from dskd.build import PROBE, Given, build_model, load_data, spec_of
from dskd.data import Dataset
from dskd.data.resident import Resident, ResidentData
from dskd.methods.base import Method, Pair
from dskd.models.checkpoint import load_weights, read_weights
from dskd.models.stages import StagedModel
from dskd.models.teacher import Teacher
from dskd.recipe import MethodSettings, ModelSettings, Recipe, TeacherSettings
from dskd.rundir import LAST, RunDirectory
from dskd.schedule import learning_rate
from dskd.session import Result, Session
from dskd.train import Trainer, make_optimizer

log = logging.getLogger("dskd")


def train(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, given: Given | None = None
) -> Result:
    """Trains ``student.name`` by labels alone.

    Args:
        recipe: A run; its teacher and method are not read.
        resume: Continue an interrupted run; starts anew, and says so, where there is none.
        overwrite: Replace the run that is there.
        given: Objects in place of names.

    Raises:
        InputError: Something in the recipe cannot be used. Nothing is left behind.
        Stopped: A signal asked for a stop; the state is saved.
    """
    recipe = recipe.changed(method=_by_labels(), teacher=None)
    return distill(recipe, resume=resume, overwrite=overwrite, given=given)


def distill(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, given: Given | None = None
) -> Result:
    """Distils ``student.name`` from ``teacher.name`` by ``method.name``.

    Without ``teacher.checkpoint`` the teacher is trained first, by labels and the recipe's own
    schedule, and kept in the folder ``teacher`` of the run.

    Args:
        recipe: The whole run.
        resume: Continue an interrupted run; starts anew, and says so, where there is none.
        overwrite: Replace the run that is there.
        given: Objects in place of names.

    Raises:
        InputError: Something in the recipe cannot be used. Nothing is left behind.
        Stopped: A signal asked for a stop; the state is saved.
    """
    assert recipe.out is not None, "a resolved recipe has its folder"
    given = given or Given()
    directory = RunDirectory(recipe.out)
    directory.check(recipe.plain(), resume=resume, overwrite=overwrite)
    device = devices.pick(recipe.train.device)
    devices.repeatable(device)
    data = load_data(recipe.data, given.data)
    for note in data.notes:
        log.info(note)
    check_fit(recipe, data, given)
    with directory.owned():
        # Another run may have come and gone while the pictures were read.
        directory.check(recipe.plain(), resume=resume, overwrite=overwrite)
        if overwrite:
            directory.clear()
        directory.start(recipe.plain(), devices.environment(device))
        pictures = ResidentData(data, device)
        teacher = make_teacher(recipe, pictures, given, directory.path / "teacher", resume)
        return _fit(make_session(recipe, pictures, given, Answers(teacher), directory), resume)


def check_fit(recipe: Recipe, data: Dataset, given: Given) -> None:
    """Builds everything once and takes a step: what does not fit is said before any work.

    Args:
        recipe: The whole run.
        data: Its pictures.
        given: Objects in place of names; copies of them are used.

    Raises:
        InputError: Data, student, teacher and method do not fit each other.
    """
    student = build_model(recipe.student, data, 0, given.student, given.allow_code)
    teacher = None
    if recipe.teacher is not None:
        model = build_model(recipe.teacher, data, 0, given.teacher, given.allow_code)
        _load_checkpoint(model, recipe.teacher)
        if _trains_teacher(recipe, given):
            check_fit(teacher_recipe(recipe, Path()), data, Given(allow_code=given.allow_code))
        teacher = Teacher(model)
    method = make_method(recipe, data, student, teacher)
    trainer = make_trainer(
        recipe, method, Answers(teacher), Resident(data.train, torch.device("cpu"))
    )
    trainer.rehearse()


def make_method(
    recipe: Recipe, data: Dataset, student: StagedModel, teacher: Teacher | None
) -> Method:
    """The recipe's method for these models, on their device."""
    classifier = teacher.model.linear if teacher is not None else None
    pair = Pair(
        student,
        spec_of(student, data, "student"),
        spec_of(teacher.model, data, "teacher") if teacher is not None else None,
        copy.deepcopy(classifier),
        data.train.labels,
        recipe.train.batch_size + 1,  # a lone last picture joins the batch before it
    )
    return methods.find(recipe.method.name)(pair, **recipe.method.options)


def make_teacher(
    recipe: Recipe, pictures: ResidentData, given: Given, folder: Path, resume: bool
) -> Teacher | None:
    """The frozen teacher: given, loaded, or trained first; None for a method that needs none.

    Args:
        recipe: The run.
        pictures: On the device where the teacher is to answer.
        given: Objects in place of names.
        folder: Where a teacher that has no checkpoint is trained, unless it was already.
        resume: Whether its interrupted training goes on.

    Raises:
        InputError: Weights do not fit, or another teacher lies in the folder.
        Stopped: A signal asked for a stop; the state is saved.
    """
    settings = recipe.teacher
    if settings is None or not methods.find(recipe.method.name).needs_teacher:
        return None
    model = build_model(settings, pictures.data, recipe.seed, given.teacher, given.allow_code)
    _load_checkpoint(model, settings)
    device = pictures.train.device
    if _trains_teacher(recipe, given):
        own = RunDirectory(folder)
        plan = teacher_recipe(recipe, own.path)
        own.check_same(plan.plain())
        if not own.finished:
            log.info("training the teacher %s first, in %s", settings.name, own.path)
            own.start(plan.plain(), devices.environment(device))
            alone = Given(allow_code=given.allow_code)
            _fit(make_session(plan, pictures, alone, Answers(None), own), resume)
        load_weights(model.module, read_weights(own.path / LAST), f"the teacher in {own.path}")
    model.place(device)
    return Teacher(model, pictures.train.images[:PROBE] if settings.fold else None)


def _trains_teacher(recipe: Recipe, given: Given) -> bool:
    """Whether the recipe's teacher has to be trained before it can teach."""
    if recipe.teacher is None or not methods.find(recipe.method.name).needs_teacher:
        return False
    return recipe.teacher.checkpoint is None and given.teacher is None


def _load_checkpoint(teacher: StagedModel, settings: TeacherSettings) -> None:
    if settings.checkpoint is not None:
        what = f"the teacher checkpoint {settings.checkpoint}"
        load_weights(teacher.module, read_weights(settings.checkpoint), what)


def teacher_recipe(recipe: Recipe, out: Path) -> Recipe:
    """How a recipe trains its teacher: by labels, else as the student."""
    teacher = recipe.teacher
    assert teacher is not None
    own = {"epochs": teacher.epochs, "lr": teacher.lr}
    schedule = {key: value for key, value in own.items() if value is not None}
    return recipe.changed(
        student=ModelSettings(**{key: getattr(teacher, key) for key in ModelSettings.model_fields}),
        teacher=None,
        method=_by_labels(),
        train=recipe.train.model_copy(update=schedule),
        out=out,
    )


def _by_labels() -> MethodSettings:
    return MethodSettings(name="ce", **methods.resolve("ce", {}))


def make_session(
    recipe: Recipe, pictures: ResidentData, given: Given, answers: Answers, directory: RunDirectory
) -> Session:
    """A run that can begin. The student's weights depend on the seed alone.

    Args:
        recipe: The run.
        pictures: On the device that trains.
        given: Objects in place of names.
        answers: Of the teacher, on the same device.
        directory: Where it is recorded.
    """
    device = pictures.train.device
    student = build_model(
        recipe.student, pictures.data, recipe.seed, given.student, given.allow_code
    )
    torch.manual_seed(_stream(recipe.seed, 1))
    method = make_method(recipe, pictures.data, student, answers.teacher).to(device)
    method.student.place(device)
    trainer = make_trainer(recipe, method, answers, pictures.train)
    torch.manual_seed(_stream(recipe.seed, 2))
    return Session(recipe, pictures, trainer, directory)


def _fit(session: Session, resume: bool) -> Result:
    session.begin(resume)
    session.train()
    return session.finish()


def make_trainer(recipe: Recipe, method: Method, answers: Answers, split: Resident) -> Trainer:
    """The trainer of a recipe's schedule.

    Args:
        recipe: Its ``train``, ``data`` and ``seed`` are read.
        method: On its device.
        answers: Of a teacher on the same device.
        split: The training split, on the same device.
    """
    settings = recipe.train
    optimizer = make_optimizer(
        method,
        settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    rate = partial(
        learning_rate,
        epochs=settings.epochs,
        lr=settings.lr,
        schedule=settings.schedule,
        milestones=settings.milestones,
        gamma=settings.gamma,
        warmup=settings.warmup,
    )
    return Trainer(
        method,
        answers,
        split,
        optimizer,
        rate,
        seed=recipe.seed,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        padding=recipe.data.crop,
        flip=recipe.data.flip,
        precision=settings.precision,
    )


def _stream(seed: int, part: int) -> int:
    """A seed of its own for each part of a run."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
