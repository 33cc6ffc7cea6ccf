"""Tar shards as WebDataset writes them: the members of a sample differ in their suffix only.

The standard library finds the members of a tar file once. After that every sample is read at its
offset, in the order of the epoch plan, by whichever process needs it. So an epoch is the same with
any number of workers and processes, and a run resumes in its middle. The library ``webdataset``
reads shards as streams, where the order depends on the number of workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dskd.data.archives import MEMORY_CHECKED
from dskd.data.dataset import Dataset
from dskd.data.download import cache_folder
from dskd.data.image_source import ImageFiles, rows_of
from dskd.data.image_table import ImageTable, Row, read_table
from dskd.data.own_images import load_images
from dskd.data.path_list import PathList
from dskd.data.read_options import ReadOptions
from dskd.data.shard_index import read_samples
from dskd.data.shard_list import Shard, find_shards
from dskd.errors import InputError
from dskd.runtime.memory import require_memory
from dskd.storage.atomic import part_for

log = logging.getLogger("dskd")

VERSION = 2
"""Increase when the same shards give another index."""


class ShardFiles(ImageFiles):
    """The images in shards.

    Args:
        root: Where the shards are, for messages.
        shards: The shards.
        table: Names and labels of the images.
        places: int64, ``[N, 3]``: shard, offset and size of each image.
    """

    def __init__(
        self, root: Path, shards: Sequence[Shard], table: ImageTable, places: NDArray[np.int64]
    ) -> None:
        self.root, self.names = root, table.names
        self._shards = list(shards)
        self._places = places
        self.stamp = table.stamp(places.tobytes(), _stamp(shards).encode())
        hashes = np.fromiter(map(_hash, self.names), np.int64, len(self.names))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def where(self, name: str) -> str:
        """See `Files.where`."""
        return f"{name} in {self.root}"

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        shard, offset, size = self._places[self._row(name)].tolist()
        path = self._shards[shard].path
        if size > MEMORY_CHECKED:
            require_memory(size, f"the bytes of {self.where(name)}")
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                return bytes(file.read(size))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error}") from error

    def facts_of(self, names: PathList) -> NDArray[np.int64]:
        """See `ImageFiles.facts_of`: time of change of the shard, offset and size."""
        places = self._places[rows_of(names, self.names)]
        changed = np.array([shard.changed for shard in self._shards], np.int64)
        return np.column_stack([changed[places[:, 0]], places[:, 1:]])

    def _row(self, name: str) -> int:
        """The row of a name. Names are found by their hashes, which take eight bytes each."""
        key = _hash(name)
        first = np.searchsorted(self._hashes, key, "left")
        last = np.searchsorted(self._hashes, key, "right")
        for row in self._order[first:last].tolist():
            if self.names[row] == name:
                return int(row)
        raise self.missing(name)


def _hash(name: str) -> int:
    """A hash that is the same in every process, unlike Python's own."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def load(root: Path | None, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """Load the images in tar shards.

    A sample has an image and a label: the text of its member ``cls``, the value ``label`` of its
    ``json``, or the text of its ``txt``. ``options`` may choose other ones. A shard belongs to the
    split that its name has, as in ``train-0000.tar``, or the name of its folder.

    Args:
        root: The folder of local shards.
        options: How the shards and the images are read.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`. It takes copies of
            shards that are remote or compressed, and an index of all.

    Raises:
        InputError: A shard is missing or damaged, or images cannot be used.
    """
    if not options.shards:
        raise InputError(
            "data.shards is missing: the data set 'webdataset' needs shards, as in "
            "data.shards=train-{0000..0009}.tar"
        )
    shards = find_shards(root, options.shards, cache_dir)
    shown = _shown(root, options.shards)
    table, places = _index(shown, shards, options, cache_dir)
    files = ShardFiles(shown, shards, table, places)
    no_test = f"no shard of {shown} has val or test in its name"
    source = table.source("webdataset", files, no_test=no_test)
    return load_images(source, options, cache_dir)


def _shown(root: Path | None, patterns: Sequence[str]) -> Path:
    """What stands for all shards in messages."""
    more = f" and {len(patterns) - 1} more" if len(patterns) > 1 else ""
    first = Path(f"{patterns[0]}{more}")
    return first if "://" in patterns[0] else Path(root or "", first).expanduser().absolute()


def _stamp(shards: Sequence[Shard]) -> str:
    """A text that differs if a shard differs."""
    return repr([(shard.name, shard.split, shard.size, shard.changed) for shard in shards])


def _index(
    shown: Path, shards: Sequence[Shard], options: ReadOptions, cache_dir: Path | None
) -> tuple[ImageTable, NDArray[np.int64]]:
    """The table of all samples and their places, from the shards or as it is cached."""
    key = options.image_column, options.label_column, options.skip_bad
    name = hashlib.sha256(f"{VERSION} {shown} {key}".encode()).hexdigest()[:16]
    path = cache_folder(cache_dir) / f"shards-{name}.npz"
    stamp = _stamp(shards)
    if cached := _read_index(path, stamp):
        return cached
    log.info("finding the samples of %d shards", len(shards))
    places = array("q")
    table = read_table(_rows(shards, options, places), str(shown), options.skip_bad)
    own = np.frombuffer(places, np.int64).reshape(-1, 3)[table.rows]
    with contextlib.suppress(OSError):  # a full disk costs the next run the time
        path.parent.mkdir(parents=True, exist_ok=True)
        with part_for(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, places=own, **_to_arrays(table, stamp))
    return table, own


def _read_index(path: Path, stamp: str) -> tuple[ImageTable, NDArray[np.int64]] | None:
    """The index that is cached; None if it is missing, damaged or of other shards."""
    try:
        with np.load(path, allow_pickle=False) as found:
            facts = json.loads(found["facts"].tobytes())
            return (
                (_from_arrays(facts, found), found["places"]) if facts["stamp"] == stamp else None
            )
    except Exception:  # numpy and zipfile raise many types
        return None


def _rows(shards: Sequence[Shard], options: ReadOptions, places: array[int]) -> Iterator[Row]:
    """The samples of all shards; adds the places of those that can be used."""
    for number, shard in enumerate(shards):
        for row, place in read_samples(shard, options):
            if not row.problem:
                places.extend((number, place.offset, place.size))
            yield row


def _to_arrays(table: ImageTable, stamp: str) -> dict[str, NDArray[Any]]:
    facts = {"stamp": stamp, "classes": table.classes, "bad": table.bad}
    return {
        "data": table.names.data,
        "ends": table.names.ends,
        "labels": table.labels,
        "splits": table.splits,
        "rows": table.rows,
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
    }


def _from_arrays(facts: Mapping[str, Any], found: Mapping[str, NDArray[Any]]) -> ImageTable:
    names = PathList()
    names.data, names.ends = found["data"], found["ends"]
    bad = [(name, reason) for name, reason in facts["bad"]]
    arrays = found["labels"], found["splits"], facts["classes"], found["rows"]
    return ImageTable(names, *arrays, bad)
