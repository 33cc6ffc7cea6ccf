"""Data sets of the library ``datasets``: an object, a folder, or a name on the Hub."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dskd.data.archives import existing_path
from dskd.data.catalog import SAVED
from dskd.data.dataset import Dataset
from dskd.data.hf_columns import class_names, image_column, label_column
from dskd.data.image_source import TRAIN, ImageFiles, rows_of
from dskd.data.image_table import SPLITS, ImageTable, Row, read_table
from dskd.data.own_images import load_images
from dskd.data.path_list import PathList
from dskd.data.read_options import ReadOptions
from dskd.errors import InputError, first_line
from dskd.runtime.extras import import_extra

if TYPE_CHECKING:
    import datasets

_PIECE = 10_000
"""Labels or paths that are read at a time."""


class HFFiles(ImageFiles):
    """The images in the rows of data sets, by the names ``split/row``.

    Args:
        root: What the data sets are called.
        splits: The data sets.
        column: Their image column.
        table: Names and labels of the images.
    """

    def __init__(
        self, root: Path, splits: Mapping[str, datasets.Dataset], column: str, table: ImageTable
    ) -> None:
        self.root, self.names = root, table.names
        self._column = column
        self._splits = {name: _not_decoded(one, column) for name, one in splits.items()}
        prints = [f"{name} {_fingerprint(one)}" for name, one in splits.items()]
        self._mark = hashlib.sha256(f"{column} {prints}".encode()).digest()[:8]
        self._facts = _facts_of_paths(self._splits, column, self.names)
        self.stamp = table.stamp(self._mark, self._facts.tobytes())

    def where(self, name: str) -> str:
        """See `Files.where`."""
        return f"{name} of {self.root}"

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        split, _, row = name.rpartition("/")
        try:
            return _bytes(self._splits[split][int(row)][self._column])
        except Exception as error:  # pyarrow and the library raise many types
            raise InputError(f"cannot read {self.where(name)}: {first_line(error)}") from error

    def facts_of(self, names: PathList) -> NDArray[np.int64]:
        """See `ImageFiles.facts_of`: a number that stands for all rows, and facts of the paths."""
        mark = np.full((len(names), 1), np.frombuffer(self._mark, np.int64), np.int64)
        if not self._facts.size:
            return mark
        return np.column_stack([mark, self._facts[rows_of(names, self.names)]])


@dataclass(frozen=True)
class HFSplits:
    """Data sets of the library ``datasets`` in place of files.

    Attributes:
        splits: The data sets by the name of the split.
        name: What they are called in messages.
    """

    splits: Mapping[str, datasets.Dataset]
    name: str

    def read(self, options: ReadOptions, cache_dir: Path | None) -> Dataset:
        """The data set.

        Args:
            options: How the columns and the images are read.
            cache_dir: The cache folder, see `dskd.data.download.cache_folder`.

        Raises:
            InputError: No column has images or labels, or images cannot be used.
        """
        splits, notes = _known_splits(self.splits, self.name)
        labels = label_column(splits, self.name, options.label_column)
        names = class_names(splits, self.name, labels)
        images = image_column(splits, self.name, options.image_column)
        values = {split: list(_labels(one, labels)) for split, one in splits.items()}
        for split in [*values]:
            if split != TRAIN and not any(map(_is_label, values[split])):
                notes.append(f"the split {split} has no labels and is left out")
                del splits[split], values[split]
        rows = (row for split, found in values.items() for row in _rows(split, found, names))
        table = read_table(rows, self.name, options.skip_bad, names)
        files = HFFiles(Path(self.name), splits, images, table)
        no_test = f"{self.name} has no split validation or test"
        source = table.source("hf", files, notes, no_test)
        return replace(load_images(source, options, cache_dir), names_are_files=False)

    def first_images(self, chosen: str | None, count: int) -> list[bytes]:
        """The bytes of the first training images.

        Args:
            chosen: The column with the images, see `dskd.data.hf_columns.image_column`.
            count: How many.
        """
        splits, _ = _known_splits(self.splits, self.name)
        column = image_column(splits, self.name, chosen)
        few = _not_decoded(splits[TRAIN], column)
        return [_bytes(few[row][column]) for row in range(min(count, len(few)))]


def load(root: Path | None, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """Load a folder or a data set of the Hub with the library ``datasets``.

    A folder was saved by ``save_to_disk``, or holds Parquet files or images as the library reads
    them.

    Args:
        root: The folder.
        options: How the columns and the images are read; its `hub` is a name on the Hub, with
            ``:`` and the name of a configuration where the data set has several.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`.

    Raises:
        InputError: The library or the network is missing, or the data set cannot be used.
    """
    return open_splits(root, options.hub).read(options, cache_dir)


def open_splits(root: Path | None, name: str | None) -> HFSplits:
    """The data sets in a folder or of the Hub.

    Args:
        root: The folder.
        name: The name on the Hub, see `load`.

    Raises:
        InputError: See `load`.
    """
    if (root is None) == (name is None):
        raise InputError(
            "the data set 'hf' needs either data.root, a folder, or data.hub, a name on the Hub"
        )
    library = _library()
    hub, _, configuration = (name or "").partition(":")
    try:
        if root is None:
            found = library.load_dataset(hub, configuration or None)
        else:
            path = existing_path(root)
            saved = any((path / file).is_file() for file in SAVED)
            found = library.load_from_disk(path) if saved else library.load_dataset(str(path))
    except InputError:
        raise
    except Exception as error:  # the library raises many types, also of other libraries
        fix = "check the name and the network, or give a folder" if hub else "check data.root"
        raise InputError(f"cannot read {hub or root}: {first_line(error)}; {fix}") from error
    splits = as_hf(found, hub or str(existing_path(root or Path())))
    assert splits is not None, "the library returns its own data sets"
    return splits


def _library() -> Any:
    """The library ``datasets``.

    Raises:
        InputError: It is not installed.
    """
    needed = "the data set 'hf' needs the package datasets;"
    return import_extra("datasets", "datasets", needed)


def as_hf(given: object, name: str | None = None) -> HFSplits | None:
    """An object of the library ``datasets`` as splits; None if it is none.

    Args:
        given: Anything.
        name: What it is called; None for the name of its type.

    Raises:
        InputError: It is a stream, which has no length.
    """
    library = sys.modules.get("datasets")
    if library is None or not hasattr(library, "DatasetDict"):
        return None  # without the library imported, nothing can be of it
    name = name or f"<{type(given).__name__}>"
    if isinstance(given, library.IterableDataset | library.IterableDatasetDict):
        raise InputError(f"{name} can only be iterated; load it without streaming=True")
    if isinstance(given, library.DatasetDict):
        return HFSplits(dict(given), name)
    return HFSplits({TRAIN: given}, name) if isinstance(given, library.Dataset) else None


def _known_splits(
    splits: Mapping[str, datasets.Dataset], name: str
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """The splits whose names are known, the training split first, and a note on the others."""
    if len(splits) == 1:
        splits = {TRAIN: next(iter(splits.values()))}
    if TRAIN not in splits:
        raise InputError(f"{name} has the splits {', '.join(splits)}, and none is called train")
    ignored = [split for split in splits if split not in SPLITS]
    notes = [f"ignored: the splits {', '.join(ignored)} of {name}"] if ignored else []
    for split, one in splits.items():
        if split in SPLITS and one.format["type"] == "custom":
            raise InputError(
                f"{name} has a transform, which would be left out; give dataset.with_format(None), "
                "and use data.augment"
            )
    return {split: splits[split] for split in SPLITS if split in splits}, notes


def _not_decoded(one: datasets.Dataset, column: str) -> datasets.Dataset:
    """The column with the images, as bytes or paths."""
    from datasets import Image

    try:
        return (
            one.with_format(None).select_columns([column]).cast_column(column, Image(decode=False))
        )
    except Exception as error:  # pyarrow and the library raise many types
        raise InputError(f"the column {column!r} has no images: {first_line(error)}") from error


def _facts_of_paths(
    splits: Mapping[str, datasets.Dataset], column: str, names: PathList
) -> NDArray[np.int64]:
    """Size and time of change of the images that are files elsewhere.

    The library's hash has their paths only.

    Args:
        splits: The data sets, not decoded.
        column: Their image column.
        names: Names of the images, as ``split/row``.

    Returns:
        int64, ``[N, 2]``, zeros for an image in the data set and for a file that is not there;
        ``[N, 0]`` if all images are in the data set.
    """
    import pyarrow.compute as pc

    facts: dict[str, NDArray[np.int64]] = {}
    for split, one in splits.items():
        # Only then are rows read, since those with bytes take long.
        if pc.struct_field(one.data.column(column), "bytes").null_count:
            batches = one.with_format("arrow").iter(_PIECE)
            parts = (pc.struct_field(batch[column], "path").to_pylist() for batch in batches)
            facts[split] = np.zeros((len(one), 2), np.int64)
            for row, path in enumerate(chain.from_iterable(parts)):
                facts[split][row] = _size_and_time(path)
    found = np.zeros((len(names), 2 if facts else 0), np.int64)
    for number, name in enumerate(names) if facts else ():
        split, _, at = name.rpartition("/")
        if split in facts:
            found[number] = facts[split][int(at)]
    return found


def _size_and_time(path: str | None) -> tuple[int, int]:
    if not path:
        return 0, 0
    try:
        found = Path(path).stat()
    except (OSError, ValueError):  # reading it says what is wrong
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _bytes(value: Mapping[str, Any] | None) -> bytes:
    """The bytes of an image that is not decoded; empty if there is none."""
    if value and value["bytes"] is not None:
        return bytes(value["bytes"])
    return Path(value["path"]).read_bytes() if value and value["path"] else b""


def _labels(one: datasets.Dataset, column: str) -> Iterator[Any]:
    """The values of a column, some in memory at a time."""
    for batch in one.select_columns([column]).with_format("arrow").iter(_PIECE):
        yield from batch[column].to_pylist()


def _is_label(value: Any) -> bool:
    return value is not None and value != -1 and value != ""


def _rows(split: str, values: Sequence[Any], names: Sequence[str] | None) -> Iterator[Row]:
    """The rows of a split as those of a table."""
    for number, value in enumerate(values):
        name = f"{split}/{number}"
        if not _is_label(value):
            yield Row(name, "", split, "no label")
        elif names is not None and not 0 <= value < len(names):
            yield Row(name, "", split, "label out of range")
        else:
            yield Row(name, str(value) if names is None else names[value], split)


def _fingerprint(one: datasets.Dataset) -> str:
    """The library's hash of a data set and of what was done with it."""
    return str(one._fingerprint)
