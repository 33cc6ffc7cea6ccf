"""A run takes more epochs than it was started with, if its learning rates allow it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dskd.config.base_recipe import stored_epochs
from dskd.config.train_settings import TrainSettings
from dskd.engine.lr_schedule import schedule_of
from dskd.engine.task import RunRecipe
from dskd.errors import InputError
from dskd.runtime import distributed
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import LAST, RECIPE, comparison_of
from dskd.storage.run_guard import check_run
from dskd.storage.yaml_file import read_yaml_file


def takes_more_epochs(recipe: RunRecipe, directory: RunDirectory) -> bool:
    """Whether a recipe continues the run in a folder to more epochs, and differs in nothing else.

    Args:
        recipe: Of the run that is to go on.
        directory: Of the run that is there, finished or not.

    Raises:
        InputError: The epochs done would have had other learning rates, the run belongs to a
            comparison, or its folder cannot be used.
    """
    stored = stored_recipe(directory)
    before = stored_epochs(stored)
    if before is None or before >= recipe.train.epochs:
        return False
    if recipe.differences(stored, more_epochs=True):
        return False
    if comparison_of(directory.path):
        raise InputError(
            f"{directory.path} belongs to a comparison, whose runs have the same epochs; compare "
            f"again in another folder with train.epochs={recipe.train.epochs}"
        )
    distributed.on_rank_zero(check_run)(directory.path)
    if directory.finished:  # else `check_same_run` knows from the checkpoint which are done
        check_rates(recipe.train, before, before, directory.path)
    return True


@distributed.on_rank_zero
def stored_recipe(directory: RunDirectory) -> dict[str, Any]:
    """The recipe of the run in a folder; empty if there is none.

    Raises:
        InputError: The file is damaged.
    """
    path = directory.path / RECIPE
    return read_yaml_file(path, "recipe") if path.is_file() else {}


def check_rates(train: TrainSettings, before: int, done: int, path: Path) -> None:
    """Refuses more epochs if the epochs that are done would have had other learning rates.

    Args:
        train: The settings now.
        before: The epochs that the run was started with; all else was the same.
        done: How many epochs have begun.
        path: The folder of the run.

    Raises:
        InputError: A rate differs.
    """
    other = "train anew in another folder"
    if (path / LAST).is_file():
        other += f", or start a run from this student with student.checkpoint={path / LAST}"
    then, now = schedule_of(train.model_copy(update={"epochs": before})), schedule_of(train)
    for half in range(2 * done):
        if then(half / 2) != now(half / 2):
            raise InputError(
                f"{path} cannot go on to train.epochs={train.epochs}: the schedule "
                f"{train.schedule!r} depends on the number of epochs, and the rate in epoch "
                f"{half // 2 + 1} was {then(half / 2):.3g}, not {now(half / 2):.3g}; {other}"
            )
