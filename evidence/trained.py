"""Trains the runs of a study that are not finished."""

from __future__ import annotations

import json
from typing import Any

from dskd.config.schema import Recipe
from dskd.engine import run
from dskd.storage.run_directory import RunDirectory


def result_of(recipe: Recipe) -> dict[str, Any]:
    """The content of ``result.json`` of a run, which is trained if it is not finished.

    Args:
        recipe: The run, with its folder.

    Raises:
        InputError: The folder has a run of another recipe.
    """
    assert recipe.out is not None, "a loaded recipe has its folder"
    folder = recipe.out
    directory = RunDirectory(folder)
    directory.check_same(recipe)
    if not directory.finished:
        run.distill(recipe, resume=True)
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found
