"""The training of a teacher in a folder of its own, before the student is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from dskd.config.base_recipe import stored_epochs
from dskd.engine import method_code
from dskd.engine.finish import finish
from dskd.engine.more_epochs import stored_recipe
from dskd.engine.task import RunRecipe
from dskd.engine.training_run import TrainingRun
from dskd.errors import as_given
from dskd.runtime import distributed
from dskd.storage.atomic import refuse_links
from dskd.storage.run_directory import RunDirectory

log = logging.getLogger("dskd")


class _TeacherRecipe(RunRecipe, Protocol):
    """The recipe of a teacher's training."""

    def changed(self: T, **sections: Any) -> T:
        """Copies the recipe with some sections replaced."""


T = TypeVar("T", bound=_TeacherRecipe)


def train_in_folder(
    recipe: T,
    fingerprint: str,
    device: torch.device,
    build: Callable[[T, RunDirectory], TrainingRun],
    resume: bool,
    inherits_epochs: bool,
) -> Path:
    """Trains a teacher in the folder of its recipe, unless it is finished there.

    Args:
        recipe: The teacher's own training.
        fingerprint: Of its data.
        device: That trains.
        build: Takes the recipe and the directory, and gives the training run.
        resume: Whether an interrupted training goes on.
        inherits_epochs: Whether its epochs are those of the student's run. If that has taken more
            epochs since the teacher was trained, the teacher stays as it is.

    Returns:
        The folder.

    Raises:
        InputError: The folder holds another training, or is in use.
        Stopped: A signal asked for a stop; the state is saved.
    """
    assert recipe.out is not None, "a teacher has a folder"
    directory = RunDirectory(recipe.out)
    distributed.on_rank_zero(refuse_links)(directory.path)
    with directory.locked():
        if inherits_epochs and directory.finished:
            recipe = _with_epochs(recipe, stored_epochs(stored_recipe(directory)))
        directory.check_same(recipe)
        if directory.finished:
            directory.check_data(fingerprint)
            return directory.path
        log.info("training the teacher %s first, in %s", recipe.student.name, directory.path)
        facts = method_code.environment(recipe, device)
        if directory.begun:
            method_code.warn_if_changed(directory.path, recipe.method.name, facts)
        directory.start(recipe.plain(), facts)
        run = build(recipe, directory)
        run.begin(resume)
        run.train()
        finish(run)
    return directory.path


def _with_epochs(recipe: T, epochs: int | None) -> T:
    """The recipe with the epochs that the teacher was trained for."""
    if epochs is None or epochs == recipe.train.epochs:
        return recipe
    line = (
        f"the teacher stays as it was trained, in {epochs} epochs; to train this run anew, give "
        f"teacher.epochs={epochs} with its recipe"
    )
    log.info(as_given(line))
    return recipe.changed(train=recipe.train.model_copy(update={"epochs": epochs}))
