"""Recipes of runs on graphs."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from dskd.engine.tasks.graphs.settings import DataName, GraphRecipe
from dskd.engine.tasks.graphs.sources import check_applies
from dskd.engine.tasks.recipes import TaskRecipes
from dskd.errors import unknown
from dskd.storage.paths import as_path

RECIPES = TaskRecipes(
    task="graphs",
    model=GraphRecipe,
    package="dskd.engine.tasks.graphs",
    method="alignahead",
    alone="alone",
    check=lambda recipe: check_applies(recipe.data),
)
"""Loads them."""


def data_settings(given: str | Path) -> list[str]:
    """Overrides for graphs that are given by a name or as a file.

    Args:
        given: A name of `DataName`, or an .npz file. A `Path` is a file.

    Raises:
        InputError: It is neither.

    Example:
        >>> data_settings("ppi"), data_settings("mine.npz")
        (['data.name=ppi'], ['data.name=npz', 'data.root=mine.npz'])
    """
    if str(given).endswith(".npz"):
        return ["data.name=npz", f"data.root={as_path(given, 'data')}"]
    if isinstance(given, str) and given in get_args(DataName) and given != "npz":
        return [f"data.name={given}"]
    raise unknown("data set", str(given), [*get_args(DataName)[1:], "<a file>.npz"])
