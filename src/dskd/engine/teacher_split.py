"""Warns of a teacher that was trained on another split of the same data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dskd.errors import InputError, brief
from dskd.storage.run_files import RECIPE
from dskd.storage.yaml_file import read_yaml_file

log = logging.getLogger("dskd")

_SPLIT = ("test_split", "split_seed", "train_per_class", "val_per_class", "patient")
"""The settings of all tasks on which it depends which samples are held out for the test."""


def warn_of_other_split(weights: Path | None, recipe: Any, held_out: bool) -> None:
    """Warns if a teacher comes from a run that held out other samples of the same data.

    Such a teacher has learned from some of the test samples: its accuracy is too high, and its
    students may be better than they would be on new samples. Nothing is known of a file that lies
    in no run's folder.

    Args:
        weights: The file of the teacher's weights; None without one.
        recipe: Of the run that uses the teacher.
        held_out: Whether the run has held out its test samples; others have a split of their own.
    """
    if not held_out or weights is None or (theirs := _data_of_run(weights.parent / RECIPE)) is None:
        return
    own = _with_seed(recipe.plain()) or {}
    if (theirs.get("name"), _place(theirs)) != (own.get("name"), _place(own)):
        return
    for key in _SPLIT:
        there, here = theirs.get(key), own.get(key)
        if None not in (there, here) and there != here:
            log.warning(
                "teacher.checkpoint %s comes from a run with data.%s=%s, and this run has %s: the "
                "teacher may have learned from test samples; give a teacher of the same split",
                *(weights, key, brief(there), brief(here)),
            )
            return


def _data_of_run(path: Path) -> Mapping[str, Any] | None:
    """The settings of a run's data; None if there is no recipe that can be read."""
    try:
        return _with_seed(read_yaml_file(path, "recipe"))
    except InputError:
        return None


def _with_seed(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings of the data of a recipe, with the seed of the split."""
    data = values.get("data")
    if not isinstance(data, Mapping):
        return None
    if "split_seed" in data and data["split_seed"] is None:
        return {**data, "split_seed": values.get("seed")}
    return data


def _place(data: Mapping[str, Any]) -> object:
    """Where the data lies: a path may be written in several ways, and a file may hold anything."""
    root = data.get("root")
    try:
        return Path(root).resolve() if isinstance(root, str) else root
    except (OSError, RuntimeError, ValueError):
        return root
