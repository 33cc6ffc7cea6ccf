"""The images of a run as a Python caller gives them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dskd.config.short_forms import data_settings
from dskd.data.dataset import Dataset
from dskd.data.hf import HFSplits, as_hf
from dskd.data.torch_dataset import TorchSplits, as_splits
from dskd.engine.user_objects import GivenData, name_of
from dskd.errors import InputError, option

DataArgument = str | Path | Dataset | Mapping[str, Any] | Any
"""Name of a data set, folder of images, data set, or settings with a ``dataset``."""


def split_data(data: DataArgument) -> tuple[dict[str, Any], GivenData | None]:
    """Splits the argument ``data`` into its settings and its images.

    Args:
        data: A name; the folder of images, as a `Path` or text that is no name; a
            `dskd.data.Dataset`; torch's map-style data set of (image, label) pairs; a data set of
            the library ``datasets``; or settings. Settings may hold a data set under ``dataset``,
            its other splits under ``test`` and ``validation``, and images without labels under
            ``unlabelled``.

    Returns:
        The settings of the section ``data``, and the images; None if the settings name them.

    Raises:
        InputError: It is nothing of that.
    """
    if isinstance(data, str | os.PathLike):
        return data_settings(data), None
    if hf := as_hf(data):  # one kind of these is a mapping
        return {"name": name_of(data)}, hf
    values = dict(data) if isinstance(data, Mapping) else {"dataset": data}
    given = values.pop("dataset", None)
    keys = [key for key in ("test", "validation", "unlabelled") if _is_object(values, key)]
    others = {key: values.pop(key) for key in keys}
    if given is None:
        if others:
            raise InputError(f"data: {min(others)} is given without dataset; give both")
        return values, None
    if isinstance(given, Dataset):
        if others:
            raise InputError(f"data: a dskd.Dataset has its own splits; drop {min(others)}")
        return {"name": name_of(given)} | values, given
    if hf := as_hf(given):
        return {"name": name_of(given)} | values, _with_splits(hf, others)
    form = "data.dataset" if isinstance(data, Mapping) else "data"
    splits = {"train": _torch_dataset(given, form)}
    unlabelled = _images(others.pop("unlabelled", None))
    splits |= {key: _torch_dataset(one, f"data.{key}") for key, one in others.items()}
    splits["unlabelled"] = unlabelled
    return {"name": name_of(given)} | values, TorchSplits(**splits)


def given_images(data: DataArgument | None) -> GivenData | None:
    """The images that are given for a finished run, whose recipe has the settings; None without.

    Args:
        data: As for `split_data`.

    Raises:
        InputError: It names images, of which the recipe of the run has its own.
    """
    if data is None:
        return None
    given = split_data(data)[1]
    if given is None:
        raise InputError(
            "data: a finished run takes images that are objects, as they were given to it in "
            f"Python, and finds all others by its recipe; give {option('root', 'FOLDER')} if they "
            "are in another folder, or drop it"
        )
    return given


def _is_object(values: Mapping[str, Any], key: str) -> bool:
    """Whether images are given as an object. Those without labels may be a folder, or None."""
    if key == "unlabelled":
        return not isinstance(values.get(key), str | os.PathLike | None)
    return key in values


def _images(given: object) -> object:
    """Images without labels, which also an array or a tensor can hold."""
    if not isinstance(given, Tensor | np.ndarray | None):
        return _torch_dataset(given, "data.unlabelled")
    return given


def _with_splits(hf: HFSplits, others: Mapping[str, Any]) -> HFSplits:
    """Data sets of the library ``datasets`` with the other splits that are given.

    Raises:
        InputError: One is not of this library, or there is such a split already.
    """
    splits = dict(hf.splits)
    if "unlabelled" in others:
        raise InputError(f"data.unlabelled: {hf.name} takes a folder of images without labels")
    for key, one in others.items():
        other = as_hf(one)
        if other is None or len(other.splits) != 1:
            raise InputError(f"data.{key}: a Dataset of the library datasets is needed as well")
        if key in splits:
            raise InputError(f"data: dataset has a split {key}; drop {key}")
        splits[key] = next(iter(other.splits.values()))
    return HFSplits(splits, hf.name)


def _torch_dataset(given: object, where: str) -> object:
    splits = as_splits(given)
    if splits is None:
        forms = "a dskd.Dataset or a data set of (image, label) pairs"
        if where == "data.unlabelled":
            forms = "a folder or a data set of images"
        if where == "data":
            forms = (
                "a name, a folder, a dskd.Dataset, a data set of (image, label) pairs or a mapping "
                "of settings"
            )
        raise InputError(f"{where}: {forms} is needed, got {type(given).__name__}")
    return splits.train
