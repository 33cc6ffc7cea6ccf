"""The files and folders that a run writes into its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dskd.settings import Count, Percent
from dskd.storage.lock import LOCK_PID
from dskd.storage.metric_names import from_file

RECIPE, ENVIRONMENT = "recipe.yaml", "environment.json"
LAST, BEST, EMA = "student.safetensors", "student_best.safetensors", "student_ema.safetensors"
"""The student after the last epoch, after the best one, and the moving average (train.ema)."""
EXITS = "exits.safetensors"
"""The branches that can predict before the student of the last epoch (train.exits)."""
METRICS, RESULT = "metrics.jsonl", "result.json"
NONFINITE = "nonfinite.json"
"""Describes the step in which NaN or Inf ended the run; see `dskd.errors.NonFiniteError`."""
TEACHER_FACTS = "teacher_accuracy.json"
"""How good the teacher of the run is, see `TeacherFile`; written before the first step."""
TEACHER_LABELS = "teacher_labels.json"
"""Without labels: what the teacher predicts for the images that are held out."""
STAGES = "stages.json"
"""The stages that were chosen for student and teacher, where the recipe names none."""
COMPARISON = "comparison.json"
"""Marks the folder of a comparison."""
FAILED = "failed.txt"
"""Written by a comparison: why this run has no result."""
LOST = "lost.txt"
"""Written by a comparison: why this run has no result yet. The comparison tries it again."""
SKIPPED_IMAGES = "skipped_images.txt"
TEST_IMAGES, VALIDATION_IMAGES = "test_images.txt", "validation_images.txt"
"""Image files that were left out, each with the reason, and those that were held out."""
CHECKPOINTS, TENSORBOARD, TEACHER = "checkpoints", "tensorboard", "teacher"
"""Folders. ``teacher`` is the run of a teacher that this run trains first."""
EXPORT = "export"
"""Folder of the exported students and their model cards."""

REPORT = ("report.html", "report.csv", "report.json", "report.tex")
"""The page of ``dskd report`` and its tables, as they are called by default."""
FILES = (
    LAST,
    BEST,
    EMA,
    EXITS,
    "auxiliary.safetensors",
    METRICS,
    NONFINITE,
    TEACHER_FACTS,
    TEACHER_LABELS,
    STAGES,
    FAILED,
    LOST,
    SKIPPED_IMAGES,
    TEST_IMAGES,
    VALIDATION_IMAGES,
    *REPORT,
)
"""The files that come and go with a run, apart from those that identify or finish it."""
FOLDERS = (CHECKPOINTS, TENSORBOARD, TEACHER, EXPORT)
WRITTEN = (ENVIRONMENT, RECIPE, *FILES, *FOLDERS, RESULT, LOCK_PID)
"""Everything of which a killed run may leave a temporary file."""


def comparison_of(run: Path) -> Path | None:
    """The folder of the comparison that a run belongs to; None for a run of its own.

    Args:
        run: The folder of the run.
    """
    folder = run.resolve().parent.parent
    return folder if (folder / COMPARISON).is_file() else None


class ResultFile(BaseModel):
    """The part of ``result.json`` that says what a finished run was trained on.

    Attributes:
        fingerprints: Of the images (``data``) and of the teacher (``teacher``).
    """

    model_config = ConfigDict(extra="allow")  # metrics, and what later versions add

    fingerprints: dict[str, str | None] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named_as_in_code(cls, values: Any) -> Any:
        return from_file(values) if isinstance(values, dict) else values


class TeacherFile(BaseModel):
    """``teacher_accuracy.json``.

    Attributes:
        name: Name of the model.
        test_accuracy: Top-1 on the test split, in percent.
        test_images: Size of the test split.
        near_chance: Whether a guess would be as accurate.
    """

    model_config = ConfigDict(extra="allow")

    name: str
    test_accuracy: Percent
    test_images: Count
    near_chance: bool
