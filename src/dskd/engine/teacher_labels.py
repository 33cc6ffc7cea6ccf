"""Runs on images without labels (``data.labels=none``).

The classes are the teacher's. The images that are held out get its predictions as labels, so that
accuracy on them is agreement with the teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from dskd import methods
from dskd.config.schema import Recipe, TeacherSettings
from dskd.data import Dataset
from dskd.data.loader import DataLoaders
from dskd.engine.build_data import load_training_data
from dskd.engine.build_model import build_model
from dskd.engine.evaluate import evaluate_accuracy
from dskd.engine.load_checkpoint import weights_file
from dskd.engine.unlabelled import labels_alone_error
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, as_given, printable
from dskd.models.native import published_classes, published_names
from dskd.models.spec import describe
from dskd.models.trace import TRACED
from dskd.settings import Settings
from dskd.storage.file_facts import read_facts
from dskd.storage.json_file import read_json
from dskd.storage.run_files import TEACHER_LABELS, TEST_IMAGES
from dskd.teacher.frozen import FrozenTeacher

log = logging.getLogger("dskd")


def training_data(recipe: Recipe, objects: UserObjects) -> Dataset:
    """The images of a run. Without labels, their classes are the teacher's.

    Args:
        recipe: The run, or what the runs of a comparison share.
        objects: Used in place of names.

    Raises:
        InputError: The images cannot be read, or no teacher has classes for them.
    """
    data = load_training_data(recipe.data, objects.data)
    if not data.without_labels:
        return data
    teacher = recipe.teacher
    if teacher is None or not methods.find(recipe.method.name).needs_teacher:
        raise labels_alone_error(recipe.method.name)
    _check_head(teacher, objects)
    return replace(data, classes=_classes(teacher, data, objects))


def _check_head(teacher: TeacherSettings, objects: UserObjects) -> None:
    """Refuses a teacher without a trained head, because there are no labels to train one."""
    if teacher.head == "fit":
        raise InputError(
            "data.labels=none: teacher.head=fit fits a head by labels, and there are none; take a "
            "teacher that has a head"
        )
    published = teacher.pretrained is True and teacher.epochs == 0
    if objects.teacher is None and not (teacher.checkpoint or published):
        raise InputError(
            f"data.labels=none: there are no labels to train the teacher {teacher.name} by; give "
            "teacher.checkpoint, or teacher.pretrained=true with teacher.epochs=0"
        )
    if objects.teacher is None and published and published_classes(teacher.name) == 0:
        raise InputError(
            f"data.labels=none: the published weights of {teacher.name} have no classifier, so the "
            "teacher predicts no classes; take a teacher that has one"
        )


def _classes(teacher: TeacherSettings, data: Dataset, objects: UserObjects) -> tuple[str, ...]:
    """The teacher's classes: as its file or the Hub names them, or numbers, one for each logit."""
    facts = read_facts(weights_file(teacher))
    if facts is not None and facts.classes is not None:
        return tuple(facts.classes)
    if teacher.pretrained is True and objects.teacher is None:
        names = published_names(teacher.name)
        if names is not None:
            return names
    unknown = replace(data, classes=("0", "1"))
    model = build_model(teacher, unknown, 0, objects.teacher, objects.allow_code).eval()
    few = data.train.images_at(torch.arange(min(TRACED, len(data.train))))
    return tuple(map(str, range(describe(model, few).classes)))


def label_held_out(teacher: FrozenTeacher, data: DataLoaders) -> None:
    """Labels the images that are held out by the teacher's predictions.

    No random generator is touched.

    Args:
        teacher: Gets its ``test_predictions``.
        data: Gets the labels.
    """
    device = data.train.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        found = [
            evaluate_accuracy(teacher, lambda x: {"teacher": teacher(x).logits}, loader)[
                "teacher"
            ].predictions
            for loader in (data.test, data.validation)
            if loader is not None
        ]
    teacher.test_predictions = found[0]
    data.relabel(found[0], found[1] if len(found) > 1 else None)


def log_labels(data: Dataset, name: str) -> None:
    """Logs how many classes the teacher called ``name`` predicts for the images held out."""
    log.info(
        "the teacher %s predicts %d of its %d classes for the %d images that are held out",
        *(name, len(set(data.test.labels.tolist())), len(data.classes), len(data.test)),
    )
    if warning := one_class_warning(data, name):
        log.warning(as_given(warning))


def one_class_warning(data: Dataset, name: str) -> str:
    """What is odd about the teacher's labels; empty if nothing is.

    Args:
        data: With its labels.
        name: Of the teacher.
    """
    if len(set(data.test.labels.tolist())) > 1:
        return ""
    return (
        f"the teacher {name} predicts one class for all images that are held out, so agreement "
        "says little; check that its weights fit these images"
    )


class LabelsFile(Settings):
    """``teacher_labels.json``.

    Attributes:
        classes: The teacher's.
        test: Number of the class that it predicts for each image that is held out.
    """

    classes: list[str] = Field(min_length=1)
    test: list[int] = Field(min_length=1)


def labels_file(data: Dataset) -> Mapping[str, Any]:
    """The content of ``teacher_labels.json``, see `LabelsFile`."""
    return {"classes": list(data.classes), "test": data.test.labels.tolist()}


def with_stored_labels(data: Dataset, run: Path) -> Dataset:
    """A data set with the labels that the teacher of a run gave to the images held out.

    Args:
        data: Loaded by the recipe of the run. If it has labels of its own, it is returned as it is.
        run: Folder of the run.

    Raises:
        InputError: The file is missing or damaged, or of other images.
    """
    if not data.without_labels:
        return data
    fix = f"give the folder of a run that has {TEACHER_LABELS}"
    found = read_json(run / TEACHER_LABELS, LabelsFile, fix)
    test: Tensor = torch.tensor(found.test)
    if len(test) != len(data.test):
        raise InputError(
            f"{run / TEACHER_LABELS} has labels for {len(test)} images, and {len(data.test)} are "
            "held out; give the run's own images"
        )
    names, listed = [printable(name) for name in data.test.names], run / TEST_IMAGES
    # A label belongs to the image at its position.
    if names and listed.is_file() and names != listed.read_text(encoding="utf-8").splitlines():
        raise InputError(
            f"{run / TEACHER_LABELS} has labels for other images than those that are held out now; "
            f"give the run's own images, with the names in {listed}"
        )
    return replace(data, classes=tuple(found.classes), test=data.test.relabelled(test))
