"""What a report on image classifiers reads and measures."""

from __future__ import annotations

from pathlib import Path

from dskd.config.recipe import resolve
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.engine.build_data import load_data
from dskd.engine.teacher_labels import with_stored_labels
from dskd.engine.user_objects import UserObjects
from dskd.report.analysis import analyze
from dskd.report.task import ReportTask


def _load(recipe: Recipe, run: Path, given: UserObjects) -> Dataset:
    """The images; without labels, with those that the teacher predicted in the run."""
    return with_stored_labels(load_data(recipe.data, given.data), run)


IMAGE_REPORT = ReportTask("", resolve, _load, analyze)
