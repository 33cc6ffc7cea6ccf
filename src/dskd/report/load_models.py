"""Load the student of a finished run for a report."""

from __future__ import annotations

from pathlib import Path

from dskd.data import Dataset
from dskd.deploy.student import DeployedStudent, load_deployed
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, option
from dskd.models.staged_model import StagedModel


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
