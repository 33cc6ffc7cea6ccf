"""How large the images of a folder are, from a sample of them."""

from __future__ import annotations

import io
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from dskd.data.archives import existing_path
from dskd.data.image_files import is_image
from dskd.data.read_options import read_options

SAMPLE_PER_FOLDER, SAMPLE = 4, 64
"""Images that are opened in each folder, and in all."""


def typical_side(data: Mapping[str, Any]) -> int | None:
    """The median of the shorter sides of a few images, in pixels; none is decoded.

    Args:
        data: Settings of the section ``data``, of the user's own images.

    Returns:
        None if no image can be opened.
    """
    if not (data.get("root") or (data["name"] == "hf" and data.get("hub"))):
        return None
    sides = list(islice(_sides(_FIRST_IMAGES[data["name"]](data)), SAMPLE))
    return int(statistics.median(sides)) if sides else None


def _of_folder(data: Mapping[str, Any]) -> Iterator[Path]:
    """A few images of each folder, at any depth."""
    for folder, folders, names in os.walk(data["root"], followlinks=False):
        folders.sort()
        for name in islice(filter(is_image, sorted(names)), SAMPLE_PER_FOLDER):
            yield Path(folder, name)


def _of_manifest(data: Mapping[str, Any]) -> Iterator[Path]:
    """The first images of a manifest."""
    from dskd.data.manifest import read_values  # which imports torch

    path = existing_path(data["root"])
    columns: Any = {key: one for key, one in data.items() if key.endswith("_column")}
    for name, *_ in islice(read_values(path, read_options(None, None, **columns)), SAMPLE):
        yield path.parent / name


def _of_shards(data: Mapping[str, Any]) -> Iterator[io.BytesIO]:
    """The first images of the first shard, if it need not be copied."""
    from dskd.data.shard_index import first_images
    from dskd.data.shard_list import local_shards

    shards = local_shards(data["root"], read_options(None, None, shards=data.get("shards")).shards)
    return map(io.BytesIO, islice(first_images(shards[0]), SAMPLE) if shards else ())


def _of_hf(data: Mapping[str, Any]) -> Iterator[io.BytesIO]:
    """The first training images of a data set of the library ``datasets``."""
    from dskd.data.hf import open_splits

    splits = open_splits(data.get("root"), data.get("hub"))
    return map(io.BytesIO, splits.first_images(data.get("image_column"), SAMPLE))


_FIRST_IMAGES: Mapping[str, Callable[[Mapping[str, Any]], Iterable[Path | io.BytesIO]]] = {
    "folder": _of_folder,
    "manifest": _of_manifest,
    "webdataset": _of_shards,
    "hf": _of_hf,
}
"""Functions that return a few images, by the name of the data set."""


def _sides(files: Iterable[Path | io.BytesIO]) -> Iterator[int]:
    for file in files:
        try:
            with Image.open(file) as image:
                yield min(image.size)
        except (OSError, ValueError, Image.DecompressionBombError):  # it is reported when read
            continue
