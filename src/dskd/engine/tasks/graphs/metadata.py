"""What the file of a student says about it, apart from the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dskd.engine.tasks.graphs.settings import GraphModelSettings
from dskd.settings import Count, Settings, validate
from dskd.storage.weights import read_metadata


class StudentMetadata(Settings):
    """The metadata of a student's file; see `dskd.engine.tasks.graphs.task.GraphTask`."""

    task: Literal["graphs"]
    model: GraphModelSettings
    features: Count
    classes: tuple[str, ...]
    multilabel: bool
    normalize: bool
    method: str


def read_student_metadata(path: Path) -> StudentMetadata:
    """Reads the metadata of a student's file.

    Raises:
        InputError: It is missing, or not that of a student of graphs.
    """
    return validate(StudentMetadata, read_metadata(path), f"{path}: ")
