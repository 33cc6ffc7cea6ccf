"""Finish a student with quantization-aware training before its export to 8 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dskd import methods
from dskd.config.schema import Recipe, TeacherSettings
from dskd.config.train_settings import TrainSettings
from dskd.deploy.load_teacher import teacher_weights
from dskd.deploy.student import DeployedStudent, file_stem, load_deployed
from dskd.engine import run
from dskd.engine.given_data import DataArgument, given_images
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, NonFiniteError, Stopped, option
from dskd.methods import outside
from dskd.methods.base import Method

RATE = 0.01
"""The learning rate, as a share of that of the run, unless another is asked for."""


@dataclass(frozen=True)
class QATOptions:
    """How a student is finished.

    Attributes:
        epochs: Passes over the training images.
        lr: The learning rate at the start; it falls to 0 by a cosine. None for a hundredth of that
            of the run.
        root: Folder of the data set, in place of the recipe's.
        data: The data set, if it was given in Python.
        teacher: The teacher's module, if it was given in Python.
        allow_code: Whether a model ``package.module:function`` may run.
    """

    epochs: int
    lr: float | None = None
    root: str | Path | None = None
    data: DataArgument | None = None
    teacher: nn.Module | None = None
    allow_code: bool = False


@contextmanager
def quantization_aware(
    deployed: DeployedStudent, recipe: Recipe | None, options: QATOptions
) -> Iterator[DeployedStudent]:
    """Trains a copy of a student further, with weights and activations rounded to 8 bits.

    The training has the data, the method and the teacher of the run. It takes place in a temporary
    folder, which is removed at the end; the run stays as it is. The branches of the method start
    anew.

    Args:
        deployed: The student of a run.
        recipe: The recipe of the run; None for a student of no run.
        options: How it is finished.

    Yields:
        The finished student, not rounded.

    Raises:
        InputError: The student is of no run, its method ships another module than the student, or
            the run's data or teacher are gone.
        NonFiniteError: A number of the training became NaN or infinite.
        Stopped: A signal asked for a stop.
    """
    if recipe is None or deployed.run is None:
        raise InputError(f"{option('qat', '3')} trains with the data of a run; give its folder")
    with outside.code_allowed(options.allow_code):
        _check(deployed, recipe)
    with tempfile.TemporaryDirectory(prefix="dskd-qat-") as folder:
        student = deployed.model.module if _is_given(deployed) else None
        images = given_images(options.data)
        objects = UserObjects(images, student, options.teacher, options.allow_code)
        plan = qat_recipe(deployed, recipe, options, Path(folder) / "run")
        with _told_as_export(), outside.code_allowed(options.allow_code):
            run.distill(plan, objects=objects)
        found = load_deployed(
            Path(folder) / "run", "last", student=student, allow_code=options.allow_code
        )
        yield replace(found, run=deployed.run, which=deployed.which)


@contextmanager
def _told_as_export() -> Iterator[None]:
    """Has what ends the training speak of the export, whose temporary folder is removed."""
    try:
        yield
    except Stopped as stopped:
        stopped.message = "stopped; nothing was exported, and the run is as it was; export it again"
        raise
    except NonFiniteError as error:
        reason = str(error).partition(";")[0]  # what follows is the advice for a run
        raise NonFiniteError(
            f"quantization-aware training: {reason}; nothing was exported; give a smaller rate "
            f"with {option('qat_lr', '0.0001')}",
            error.facts,
        ) from error


def _is_given(deployed: DeployedStudent) -> bool:
    """Whether the student was given in Python. Its module has the trained weights then."""
    return deployed.name.startswith("<")


def _check(deployed: DeployedStudent, recipe: Recipe) -> None:
    """Refuses methods that are not here, or ship another module than the one they train."""
    if outside.is_missing(recipe.method.name):
        raise InputError(
            f"quantization-aware training needs the method {recipe.method.name.strip('<>')}, a "
            f"class that another program gave; export in that program, or drop {option('qat', '3')}"
        )
    method = methods.find(recipe.method.name)
    if method.deployed is not Method.deployed or deployed.metadata.get("deploy_config"):
        raise InputError(
            f"the method {recipe.method.name} ships another module than the student that it "
            f"trains, so it cannot be trained further; drop {option('qat', '3')}"
        )


def qat_recipe(deployed: DeployedStudent, recipe: Recipe, options: QATOptions, out: Path) -> Recipe:
    """The recipe of the training.

    Args:
        deployed: The student of the run.
        recipe: Of the run.
        options: How the student is finished.
        out: Folder of the training.
    """
    assert deployed.run is not None, "checked before"
    weights = deployed.run / f"{file_stem(deployed.which)}.safetensors"
    start = None if _is_given(deployed) else weights
    student = {"checkpoint": start, "checkpoint_key": None, "pretrained": False}
    fresh = TrainSettings()  # those of the run are of its own schedule
    train = {
        "epochs": options.epochs,
        "lr": options.lr if options.lr is not None else RATE * recipe.train.lr,
        "schedule": "cosine",
        "milestones": fresh.milestones,
        "gamma": fresh.gamma,
        "min_lr": 0.0,
        "warmup": 0.0,
        "ema": None,
        "exits": False,
        "compile": False,
        "int8_rounding": True,
    }
    changes: dict[str, Any] = {
        "student": recipe.student.model_copy(update=student),
        "train": recipe.train.model_copy(update=train),
        "out": out,
    }
    if options.root is not None:
        changes["data"] = recipe.data.model_copy(update={"root": Path(options.root)})
    if recipe.teacher is not None:
        changes["teacher"] = _teacher(deployed.run, recipe.teacher)
    return recipe.changed(**changes)


def _teacher(folder: Path, settings: TeacherSettings) -> TeacherSettings:
    """The trained teacher of the run."""
    weights = teacher_weights(folder, settings)
    if weights is None:
        return settings  # it was given in Python, or is used as it was published
    key = settings.checkpoint_key if weights == settings.checkpoint else None
    found = {
        "checkpoint": weights,
        "checkpoint_key": key,
        "pretrained": False,
        "epochs": None,
        "lr": None,
    }
    return settings.model_copy(update=found)
