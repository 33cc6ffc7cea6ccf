"""Decoded images on disk, so that a data set is decoded once.

One safetensors file a data set, named by what it was made from: the place of the source files and
the size asked for, then the state of the source files (name, size and time of change of each). A
file that was made from another state is replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from dskd.data.archives import Files
from dskd.data.dataset import Dataset, Split
from dskd.data.download import cache_folder
from dskd.runtime.memory import require_memory
from dskd.storage.atomic import part_for, sweep

VERSION = 1
"""Raise when the images a loader makes from the same files change."""

_FACTS = ("name", "classes", "mean", "std", "notes", "ids")


def cached(
    name: str, files: Files, size: int | None, cache: Path | None, build: Callable[[], Dataset]
) -> Dataset:
    """A data set from the cache, or built and put there.

    Args:
        name: The data set's name.
        files: What it is made from.
        size: The size asked for.
        cache: The cache folder, see `dskd.data.download.cache_folder`.
        build: Makes the data set from the files.

    Returns:
        The data set. When it could not be written to the cache, its notes say so.

    Raises:
        InputError: What ``build`` raises, or it does not fit into memory.
    """
    folder = cache_folder(cache)
    place = _short(f"{VERSION}\0{size}\0".encode() + os.fsencode(files.root))
    path = folder / f"{name}-{place}-{_short(files.stamp.encode())}.safetensors"
    sweep(folder, f"{name}-*.safetensors")
    found = _read(path)
    if found is not None:
        return found
    dataset = build()
    try:
        _write(dataset, path)
    except Exception as error:  # the disk may be full, or the folder not ours to write to
        problem = f"decoded images are not kept: cannot write to {folder} ({error})"
        return replace(dataset, notes=(*dataset.notes, problem))
    for stale in folder.glob(f"{name}-{place}-*.safetensors"):
        if stale != path:
            with contextlib.suppress(OSError):
                stale.unlink()
    return dataset


def _read(path: Path) -> Dataset | None:
    """The data set in a cache file; None when there is none or it is damaged."""
    try:
        needed = path.stat().st_size
    except OSError:
        return None
    require_memory(needed, f"the images in {path}")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            splits = {
                name: Split(file.get_tensor(f"{name}_images"), file.get_tensor(f"{name}_labels"))
                for name in ("train", "test")
            }
            values: dict[str, Any] = {key: _tuples(facts[key]) for key in _FACTS}
            dataset = Dataset(train=splits["train"], test=splits["test"], **values)
            intact = file.metadata()["check"] == _check(dataset)
    except Exception:  # whatever is wrong with the file, it can be made again
        return None
    return dataset if intact else None


def _write(dataset: Dataset, path: Path) -> None:
    """Write a cache file so that it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "train_images": dataset.train.images,
        "train_labels": dataset.train.labels,
        "test_images": dataset.test.images,
        "test_labels": dataset.test.labels,
    }
    with part_for(path) as part:
        save_file(tensors, part, {"facts": _facts(dataset), "check": _check(dataset)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())


def _facts(dataset: Dataset) -> str:
    return json.dumps({key: getattr(dataset, key) for key in _FACTS})


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(dataset: Dataset) -> str:
    """A hash of all that is stored."""
    return _short(f"{dataset.fingerprint()} {_facts(dataset)}".encode())


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
