"""Load the student or the teacher of a finished run for a report."""

from __future__ import annotations

from pathlib import Path

from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.deploy.load_teacher import load_teacher
from dskd.deploy.student import DeployedStudent, load_deployed
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, option
from dskd.models.staged_model import StagedModel
from dskd.settings import validate
from dskd.storage.run_files import RECIPE
from dskd.storage.yaml_file import read_yaml_file
from dskd.teacher.frozen import FrozenTeacher


def load_student(folder: Path, data: Dataset, given: UserObjects) -> StagedModel:
    """The student of `load_fitting`, in eval mode, on the CPU."""
    return load_fitting(folder, data, given).model


def load_fitting(folder: Path, data: Dataset, given: UserObjects) -> DeployedStudent:
    """The deployed student of a run.

    Args:
        folder: The folder of the run.
        data: The images on which the student is to be used.
        given: Objects in place of names.

    Raises:
        InputError: It cannot be built, or was trained on images of other classes or size.
    """
    deployed = load_deployed(folder, "last", student=given.student, allow_code=given.allow_code)
    if deployed.classes != data.classes or deployed.shape != data.shape:
        raise InputError(
            f"the images are not those that {folder} was trained on: their classes or size "
            f"differ; give the images of the run with {option('root', 'FOLDER')}"
        )
    return deployed


def load_teacher_of(
    folder: Path, fingerprint: str, data: Dataset, given: UserObjects
) -> StagedModel:
    """The teacher that taught a run, in eval mode, on the CPU.

    Args:
        folder: The folder of the run.
        fingerprint: Of the teacher, from the run's result.
        data: The images of the run.
        given: Objects in place of names.

    Raises:
        InputError: It cannot be built, or its weights are not those that taught the run.
    """
    # Without a check of its method, which may be code that is not allowed here.
    recipe = validate(Recipe, read_yaml_file(folder / RECIPE, "recipe"))
    teacher = load_teacher(folder, recipe, data, given)
    # A head that is fitted again may round differently on another machine.
    fitted = teacher is not None and teacher.head is not None
    if teacher is None or not (fitted or FrozenTeacher(teacher).fingerprint() == fingerprint):
        raise InputError(
            f"the teacher of {folder} is not the one that taught it: its file was replaced; put "
            "the file back"
        )
    return teacher
