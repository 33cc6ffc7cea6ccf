"""Build the objects of a run once, and rehearse a step on copies of them. Nothing is written."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from dskd import methods
from dskd.config.schema import MethodSettings, ModelSettings, Recipe, TeacherSettings
from dskd.config.train_settings import TrainSettings
from dskd.data import Dataset
from dskd.data.download import cache_folder
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_teacher_outputs
from dskd.engine.build_model import build_model
from dskd.engine.loss_scaler import check_float16
from dskd.engine.normalization import log_input
from dskd.engine.other_classes import fit_classes
from dskd.engine.preflight import check_split_size, rehearse
from dskd.engine.published_pixels import log_published_pixels
from dskd.engine.stage_record import log_stages
from dskd.engine.unlabelled import teacher_loader
from dskd.engine.user_objects import UserObjects
from dskd.errors import as_given
from dskd.methods.contracts import TeacherNeeds
from dskd.models.factory import pretrained_classes
from dskd.models.frozen_parts import frozen_note
from dskd.models.staged_model import StagedModel
from dskd.runtime.compile import check_compiler
from dskd.teacher.frozen import FrozenTeacher

log = logging.getLogger("dskd")


@dataclass(frozen=True)
class PreparedTeacher:
    """A teacher before the run.

    Attributes:
        model: On the CPU: trained, or with fresh weights if ``training`` says how to train it.
        training: The run that trains it first, whose folder is not chosen yet; None if it is
            trained.
    """

    model: StagedModel
    training: Prepared | None


@dataclass(frozen=True)
class Prepared:
    """A run before its first step: it fits together, and nothing is written.

    Attributes:
        recipe: The run.
        data: Its data set.
        student: On the CPU, with weights from the seed, or a copy of the user's module.
        teacher: None for a method that needs none.
        needs: Which of the teacher's outputs the method reads.
    """

    recipe: Recipe
    data: Dataset
    student: StagedModel
    teacher: PreparedTeacher | None
    needs: TeacherNeeds


def prepare(
    recipe: Recipe,
    data: Dataset,
    objects: UserObjects,
    device: torch.device,
    *,
    show_stages: bool = True,
) -> Prepared:
    """Builds student and teacher, and takes a rehearsal step with copies of them.

    Args:
        recipe: The run.
        data: Its data set.
        objects: Used in place of names.
        device: That will train.
        show_stages: Whether the stages that were chosen are logged.

    Raises:
        InputError: Something does not fit; one line says what.
        NonFiniteError: A number of the rehearsed step is NaN or infinite.
    """
    check_split_size(data)
    check_device(recipe.train, device)
    teacher = prepare_teacher(recipe, data, objects, device, show_stages=show_stages)
    student = build_student(recipe, data, objects, show_stages=show_stages)
    needs = rehearse(recipe, data, student, teacher.model if teacher else None)
    prepared = Prepared(recipe, data, student, teacher, needs)
    check_cache(prepared)
    return prepared


def check_device(settings: TrainSettings, device: torch.device) -> None:
    """Checks that a device can compute what the settings ask for.

    Args:
        settings: Of the training.
        device: That will train.

    Raises:
        InputError: Nothing compiles for it, or it computes no float16.
    """
    if settings.compile:
        check_compiler(device)
    if settings.precision == "float16":
        check_float16(device)


def build_student(
    recipe: Recipe, data: Dataset, objects: UserObjects, *, show_stages: bool = True
) -> StagedModel:
    """Builds the recipe's student, and logs what was chosen for it."""
    settings = recipe.student
    student = build_model(settings, data, recipe.seed, objects.student, objects.allow_code)
    if note := frozen_note(student.module, f"student {settings.name}"):
        log.info(note)
    _log_choices(settings, student, data, show_stages)
    return student


def prepare_teacher(
    recipe: Recipe,
    data: Dataset,
    objects: UserObjects,
    device: torch.device,
    *,
    show_stages: bool = True,
) -> PreparedTeacher | None:
    """Builds the recipe's teacher: the user's module, one with a checkpoint, or one to train.

    Returns:
        None if the recipe has no teacher.
    """
    settings = recipe.teacher
    if settings is None:
        return None
    if trains_teacher(recipe, objects):
        named = UserObjects(allow_code=objects.allow_code)
        training = prepare(teacher_recipe(recipe), data, named, device, show_stages=show_stages)
        _log_as_published(settings, training.student, data)
        if objects.student is None:
            _log_twin(settings, recipe)
        return PreparedTeacher(training.student, training)
    if not methods.find(recipe.method.name).needs_teacher:  # so nothing is downloaded for it
        settings = settings.model_copy(update={"pretrained": False, "epochs": None})
    model = build_model(settings, data, recipe.seed, objects.teacher, objects.allow_code)
    if methods.find(recipe.method.name).needs_teacher:
        fit_classes(model, settings, data)
    _log_choices(settings, model, data, show_stages)
    if show_stages:
        log_published_pixels(settings, recipe.data)
    return PreparedTeacher(model, None)


def _log_as_published(settings: TeacherSettings, model: StagedModel, data: Dataset) -> None:
    """Logs that a pretrained teacher may need no training, if it has as many classes."""
    if settings.pretrained is True and pretrained_classes(model.module) == len(data.classes):
        log.info(
            as_given(
                f"the pretrained weights of {settings.name} have {len(data.classes)} classes, as "
                "the images have; if they are the same, teacher.epochs=0 uses the teacher as it is"
            )
        )


def _log_twin(teacher: TeacherSettings, recipe: Recipe) -> None:
    """Logs that student and teacher begin as the same network, which some do not expect."""
    keys = ("name", "options", "pretrained", "checkpoint")
    if all(getattr(teacher, key) == getattr(recipe.student, key) for key in keys):
        log.info(
            "the teacher that is trained first is a twin of the student: it starts from the same "
            "weights and sees the same batches (seed %d); for another one, train it by itself with "
            "another seed, and give it as teacher.checkpoint",
            recipe.seed,
        )


def _log_choices(
    settings: ModelSettings, model: StagedModel, data: Dataset, show_stages: bool
) -> None:
    """Logs the stages that were chosen for a model, and the pixels of a module given in Python."""
    if show_stages:
        log_stages(settings.name, model)
    if settings.name.startswith("<"):
        log_input(settings, model, data)


def trains_teacher(recipe: Recipe, objects: UserObjects) -> bool:
    """Whether the recipe's teacher must be trained first."""
    if recipe.teacher is None or not methods.find(recipe.method.name).needs_teacher:
        return False
    return objects.teacher is None and not recipe.teacher.is_given


def teacher_recipe(recipe: Recipe) -> Recipe:
    """The run that trains a recipe's teacher: by labels, with the recipe's own schedule.

    Its folder is not chosen yet.
    """
    teacher = recipe.teacher
    assert teacher is not None
    own = {"epochs": teacher.epochs, "lr": teacher.lr}
    schedule: dict[str, Any] = {key: value for key, value in own.items() if value is not None}
    # The teacher is the plain model of the last epoch.
    schedule |= {"ema": None, "exits": False, "int8_rounding": False}
    if recipe.train.optimizer == "dot":  # there is nothing to distil
        default = TrainSettings.model_fields["dot_delta"].default
        schedule |= {"optimizer": "sgd", "dot_delta": default}
    return recipe.changed(
        student=ModelSettings(**{key: getattr(teacher, key) for key in ModelSettings.model_fields}),
        teacher=None,
        method=label_method(),
        train=recipe.train.model_copy(update=schedule),
        out=None,
    )


def label_method() -> MethodSettings:
    """The method ``ce``: training by labels alone."""
    return MethodSettings(name="ce", **methods.resolve("ce", {}))


def check_cache(prepared: Prepared) -> None:
    """Refuses a teacher cache that is damaged or does not fit on the disk.

    The outputs of a teacher that is still to be trained are checked when it is trained.

    Raises:
        InputError: The cache cannot be used.
    """
    recipe, teacher = prepared.recipe, prepared.teacher
    if recipe.teacher is None or recipe.teacher.cache == "none":
        return
    if recipe.teacher.cache_dir is None:
        cache_folder(None)  # before a teacher is trained
    if teacher is None or teacher.training is not None or not prepared.needs:
        return
    loader = teacher_loader(recipe.data, DataLoaders(prepared.data, torch.device("cpu")))
    build_teacher_outputs(recipe, loader, FrozenTeacher(teacher.model), prepared.needs).check()
