"""A cache of decoded data sets on disk.

A data set is one safetensors file. Its name holds a hash of the path and of the settings that the
images depend on, then a hash of the state of the source files (name, size and times of change of
each). If that state changes, a new file replaces the old one.
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
from torch import Tensor

from dskd.data.archives import Files
from dskd.data.dataset import Dataset, Split
from dskd.data.download import cache_folder
from dskd.runtime.memory import require_memory
from dskd.storage.atomic import part_for, sweep

VERSION = 2
"""Increase when the same files are decoded to other images."""

SPLITS = ("train", "test", "validation")
_FACTS = ("name", "classes", "mean", "std", "notes", "ids", "skipped", "test_is_held_out")


def cached(
    name: str, files: Files, key: object, cache: Path | None, build: Callable[[], Dataset]
) -> Dataset:
    """Read a data set from the cache, or build it and write it to the cache.

    Args:
        name: Name of the data set.
        files: Its source files.
        key: What the images depend on besides the files, such as their size.
        cache: The cache folder, see `dskd.data.download.cache_folder`.
        build: Builds the data set from the source files.

    Returns:
        The data set. Its notes say so if it could not be written to the cache.

    Raises:
        InputError: ``build`` fails, or the data set does not fit into memory.
    """
    folder = cache_folder(cache)
    place = place_of(files, key)
    path = cache_file(name, files, key, cache)
    sweep(folder, f"{name}-*.safetensors")
    found = _read(path)
    if found is not None:
        return found
    dataset = build()
    try:
        _write(dataset, path)
    except Exception as error:  # the disk may be full or the folder read-only
        problem = f"decoded images are not cached: cannot write to {folder} ({error})"
        return replace(dataset, notes=(*dataset.notes, problem))
    for stale in folder.glob(f"{name}-{place}-*.safetensors"):
        if stale != path:
            with contextlib.suppress(OSError):
                stale.unlink()
    return dataset


def cache_file(name: str, files: Files, key: object, cache: Path | None) -> Path:
    """The file of a data set in the cache, whether it is there or not; see `cached`."""
    file = f"{name}-{place_of(files, key)}-{_short_hash(files.stamp.encode())}.safetensors"
    return cache_folder(cache) / file


def place_of(files: Files, key: object) -> str:
    """The part of a file name that is the same for all states of the same files."""
    return _short_hash(f"{VERSION}\0{key}\0".encode() + os.fsencode(files.root))


def _read(path: Path) -> Dataset | None:
    """Read a cache file; None if it is missing or damaged."""
    try:
        needed = path.stat().st_size
    except OSError:
        return None
    require_memory(needed, f"the images in {path}")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            found: dict[str, Any] = {
                name: Split(
                    file.get_tensor(f"{name}_images"),
                    file.get_tensor(f"{name}_labels"),
                    tuple(facts[f"{name}_names"]),
                )
                for name in SPLITS
                if f"{name}_images" in file.keys()  # noqa: SIM118 (not a mapping)
            }
            values: dict[str, Any] = {key: _to_tuple(facts[key]) for key in _FACTS}
            dataset = Dataset(**found, **values)
            intact = file.metadata()["check"] == _checksum(dataset)
    except Exception:  # a file that cannot be read is built again
        return None
    return dataset if intact else None


def _write(dataset: Dataset, path: Path) -> None:
    """Write a cache file; it appears under its name only if it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, split in _splits(dataset).items():
        tensors |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
    with part_for(path) as part:
        save_file(tensors, part, {"facts": _facts(dataset), "check": _checksum(dataset)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())


def _splits(dataset: Dataset) -> dict[str, Split]:
    """The splits that exist, by the name of their attribute."""
    found = {name: getattr(dataset, name) for name in SPLITS}
    return {name: split for name, split in found.items() if split is not None}


def _facts(dataset: Dataset) -> str:
    names = {f"{name}_names": split.names for name, split in _splits(dataset).items()}
    return json.dumps({key: getattr(dataset, key) for key in _FACTS} | names)


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _checksum(dataset: Dataset) -> str:
    """A hash of everything in the file."""
    return _short_hash(f"{dataset.fingerprint()} {_facts(dataset)}".encode())


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
