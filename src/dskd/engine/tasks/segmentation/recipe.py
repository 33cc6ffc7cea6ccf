"""Recipes of runs on images with masks."""

from __future__ import annotations

from pathlib import Path

from dskd.engine.tasks.recipes import TaskRecipes
from dskd.engine.tasks.segmentation.settings import SegmentationRecipe
from dskd.errors import InputError
from dskd.storage.paths import as_path

RECIPES = TaskRecipes(
    task="segment",
    model=SegmentationRecipe,
    package="dskd.engine.tasks.segmentation",
    method="mixed",
    alone="masks",
)
"""Loads them."""


def data_settings(given: str | Path) -> list[str]:
    """Overrides for images that are given by a name or as a folder.

    Args:
        given: ``shapes``, or a folder. A `Path` is a folder.

    Raises:
        InputError: It is neither.

    Example:
        >>> data_settings("shapes")
        ['data.name=shapes']
    """
    if given == "shapes":
        return ["data.name=shapes"]
    path = as_path(given, "data")
    if not path.is_dir():
        raise InputError(f"data={given}: no such folder; give one with img and mask, or shapes")
    return ["data.name=folder", f"data.root={path}"]
