"""Load the teacher of a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dskd.config.schema import Recipe, TeacherSettings
from dskd.data import Dataset
from dskd.engine.build_model import build_model
from dskd.engine.fit_head import fit_head
from dskd.engine.other_classes import fit_classes
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.models.staged_model import StagedModel
from dskd.storage.run_files import LAST, comparison_of


def load_teacher(
    folder: Path, recipe: Recipe, data: Dataset, given: UserObjects
) -> StagedModel | None:
    """The teacher of a run, in eval mode, on the CPU; None if the recipe has none.

    Args:
        folder: The folder of the run.
        recipe: The recipe of the run.
        data: Its images.
        given: Objects in place of names.

    Raises:
        InputError: Its weights are missing, or it cannot be built.
    """
    settings = recipe.teacher
    if settings is None:
        return None
    weights = teacher_weights(folder, settings)
    as_published = settings.pretrained and (settings.epochs == 0 or settings.head == "fit")
    if weights is None and given.teacher is None and not as_published:
        raise InputError(
            f"there are no weights of the teacher {settings.name} of {folder}: it was given in "
            "Python, or its file was moved; move the file back"
        )
    key = settings.checkpoint_key if weights == settings.checkpoint else None
    found = {
        "checkpoint": weights,
        "checkpoint_key": key,
        "pretrained": settings.pretrained if weights is None else False,
    }
    plain = settings.model_copy(update=found)
    model = build_model(plain, data, 0, given.teacher, given.allow_code)
    fit_classes(model, plain, data)
    if model.head is not None:
        fit_head(model, plain, data, data.train.loader(model.mean.device))
    return model.eval()


def teacher_weights(folder: Path, settings: TeacherSettings) -> Path | None:
    """The file with the weights of the teacher of a run; None if there is none.

    Args:
        folder: The folder of the run.
        settings: Of the teacher.
    """
    return next((path for path in _weight_files(folder, settings) if path.is_file()), None)


def _weight_files(folder: Path, settings: TeacherSettings) -> Iterator[Path]:
    """Files that may hold the teacher: in the run, named in its recipe, or in its comparison."""
    yield folder / "teacher" / LAST
    if settings.checkpoint is not None:
        yield settings.checkpoint
    if comparison := comparison_of(folder):
        yield comparison / "teacher" / LAST
