"""The training of a teacher in a folder of its own, before the student is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from dskd.engine import method_code
from dskd.engine.finish import finish
from dskd.engine.task import RunRecipe
from dskd.engine.training_run import TrainingRun
from dskd.runtime import distributed
from dskd.storage.atomic import refuse_links
from dskd.storage.run_directory import RunDirectory

log = logging.getLogger("dskd")


def train_in_folder(
    recipe: RunRecipe,
    fingerprint: str,
    device: torch.device,
    build: Callable[[RunDirectory], TrainingRun],
    resume: bool,
) -> Path:
    """Trains a teacher in the folder of its recipe, unless it is finished there.

    Args:
        recipe: The teacher's own training.
        fingerprint: Of its data.
        device: That trains.
        build: Takes the directory and gives the training run.
        resume: Whether an interrupted training goes on.

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
        directory.check_same(recipe)
        if directory.finished:
            directory.check_data(fingerprint)
            return directory.path
        log.info("training the teacher %s first, in %s", recipe.student.name, directory.path)
        facts = method_code.environment(recipe, device)
        if directory.begun:
            method_code.warn_if_changed(directory.path, recipe.method.name, facts)
        directory.start(recipe.plain(), facts)
        run = build(directory)
        run.begin(resume)
        run.train()
        finish(run)
    return directory.path
