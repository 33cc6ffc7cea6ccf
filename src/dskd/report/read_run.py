"""Read the folder of one run for a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dskd import methods
from dskd.compare.reader import read_failure, read_result
from dskd.compare.tuning.facts import FACTS as STUDY
from dskd.config.schema import MethodSettings
from dskd.errors import InputError
from dskd.methods import outside
from dskd.report.task import ReportTask, task_of
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import FAILED
from dskd.storage.yaml_file import read_yaml_file


@dataclass(frozen=True)
class Run:
    """The folder of one run, read."""

    folder: Path
    recipe: dict[str, Any]
    result: dict[str, Any] | None
    failed: str | None

    @property
    def method(self) -> tuple[str, dict[str, Any]]:
        """The method's name and its settings."""
        settings = dict(self.recipe["method"])
        return settings.pop("name"), settings


def read_run(folder: Path, task: str | None) -> Run:
    """Reads the folder of a run.

    Args:
        folder: Of the run.
        task: The task that it must have; None for any.

    Raises:
        InputError: The folder holds no run, one of another task, or a trial.
    """
    if not folder.exists():
        raise InputError(f"there is no run {folder}; check the path")
    if not (folder / "recipe.yaml").is_file():
        raise InputError(
            f"{folder} holds neither a run nor a comparison; give folders that `dskd train`, "
            "`distill` or `compare` wrote"
        )
    _check_no_trial(folder)
    values = read_yaml_file(folder / "recipe.yaml", "recipe")
    check_task(folder, values, task)
    # Complete and typed, so that all keys can be relied on below.
    recipe = resolved(task_of(values), values, folder).plain()
    if not needs_teacher(recipe["method"]["name"]):
        recipe["teacher"] = None
    if (folder / "result.json").is_file():
        return Run(folder, recipe, read_result(folder), None)
    if (folder / FAILED).is_file():
        return Run(folder, recipe, None, read_failure(folder))
    return Run(folder, recipe, None, progress(folder, recipe["train"]["epochs"]))


def resolved(task: ReportTask, values: Mapping[str, Any], folder: Path) -> Any:
    """The recipe of stored values. Its method may be a class that is not given here."""
    stored = values["method"]
    if not (isinstance(stored, Mapping) and outside.is_missing(str(stored.get("name")))):
        return task.resolve(values, folder)
    known = {"name": "kd" if values.get("teacher") else "ce"}
    return task.resolve({**values, "method": known}, folder).changed(
        method=MethodSettings(**stored)
    )


def _check_no_trial(folder: Path) -> None:
    """Refuses the run of a trial: what it calls test images are validation images.

    Raises:
        InputError: It is one.
    """
    study = folder.resolve().parent.parent.parent
    if (study / STUDY).is_file() and folder.resolve().parent.parent.name == "trials":
        raise InputError(
            f"{folder} is a trial of the study {study}, which was measured on validation images; "
            f"make a report of the runs in {study / 'best'}"
        )


def check_task(folder: Path, recipe: Mapping[str, Any], wanted: str | None) -> None:
    """Refuses what is of another task than the command.

    Raises:
        InputError: It is.
    """
    if wanted is not None and recipe.get("task") != wanted:
        raise InputError(
            f"{folder} is of another task than `dskd {wanted}`; use `dskd report {folder}`, which "
            "takes all"
        )


def progress(folder: Path, epochs: int) -> str:
    """How far a run has come that has not ended."""
    done = len(RunDirectory(folder).rows())
    return f"not finished, {done} of {epochs} epochs are done" if done else "not started"


def needs_teacher(method: str) -> bool:
    """Whether a method learns from a teacher; one that is missing here may."""
    return outside.is_missing(method) or methods.find(method).needs_teacher
