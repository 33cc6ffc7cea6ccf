"""A teacher of other classes: it gets a head for the run's, or only its features are used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from dskd import methods
from dskd.config.schema import TeacherSettings
from dskd.data import Dataset
from dskd.errors import InputError, as_given
from dskd.models.spec import describe
from dskd.models.staged_model import StagedModel
from dskd.models.trace import TRACED

log = logging.getLogger("dskd")


def fit_classes(model: StagedModel, settings: TeacherSettings, data: Dataset) -> None:
    """Gives a trained teacher a head that is still to be fitted, or turns foreign logits off.

    Args:
        model: The teacher, on the CPU.
        settings: Its settings.
        data: The data set of the run.

    Raises:
        InputError: The teacher does not run on the images, or has no features for a head.
    """
    images = data.train.images_at(torch.arange(min(TRACED, len(data.train))))
    spec = describe(model, images.to(model.mean.device))
    classes = len(data.classes)
    if settings.head == "fit":
        width = spec.pooled if spec.pooled is not None else spec.last and spec.last.channels
        if not width:
            raise InputError(
                f"teacher.head=fit: {settings.name} has no linear classifier and no feature map to "
                "put a head on; take another teacher"
            )
        model.add_head(width, classes)
    elif spec.classes != classes:
        model.ignore_logits(spec.classes, classes)


def feature_settings(
    name: str, settings: Mapping[str, Any], teacher: StagedModel, classes: int
) -> dict[str, Any]:
    """The settings of a method without the terms that need the teacher's classes.

    Args:
        name: The method.
        settings: Its settings, complete.
        teacher: Of other classes.
        classes: Number of classes of the data.

    Raises:
        InputError: Nothing is left without them.
    """
    kind = methods.find(name)
    plain = dict(settings) | {key: 0.0 for key in kind.prediction_weights if key in settings}
    if kind.reads_classes(plain):
        other = (
            "set method.classifier=linear"
            if plain.get("classifier") == "teacher"
            else "take a method that learns from features, such as dskd or fitnet"
        )
        own = type(teacher.module).__name__
        why = (
            f"the {teacher.other_classes} classes of the teacher {own} are not the {classes} of "
            "the data"
            if teacher.other_classes
            else f"the published weights of the teacher {own} have no classifier"
        )
        raise InputError(
            f"the method {name} learns the teacher's predictions, and {why}; set teacher.head=fit, "
            f"take a teacher of these classes, or {other}"
        )
    return plain


def log_other_classes(
    name: str, settings: Mapping[str, Any], teacher: StagedModel, classes: int
) -> None:
    """Logs that only a teacher's features are used, and which settings are off."""
    kind = methods.find(name)
    off = [key for key in kind.prediction_weights if settings.get(key)]
    terms = f"; off: {', '.join(f'method.{key}' for key in off)}" if off else ""
    why = (
        f"the teacher has {teacher.other_classes} classes, the data {classes}"
        if teacher.other_classes
        else "the teacher's published weights have no classifier"
    )
    log.info(
        as_given(
            f"{why}: {name} learns from its features alone{terms} (teacher.head=fit gives it a "
            "head for these classes)"
        )
    )
