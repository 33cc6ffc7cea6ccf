"""Names, labels and splits of images that come from a table, checked and in compact arrays."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskd.data.assembly import unusable
from dskd.data.class_names import alike, compare_classes
from dskd.data.image_source import (
    EVALUATION,
    TRAIN,
    ImageFiles,
    ImageSource,
    evaluation_splits,
    some,
)
from dskd.data.path_list import LabelledPaths, PathList
from dskd.errors import InputError

SPLITS = (TRAIN, *EVALUATION)
"""Names that a split may have."""


class Row(NamedTuple):
    """An image of a table.

    Attributes:
        name: Name of its file.
        label: Its class.
        split: One of `SPLITS`.
        problem: Why it cannot be used, in a few words; empty if it can.
    """

    name: str
    label: str
    split: str = TRAIN
    problem: str = ""


@dataclass(frozen=True)
class ImageTable:
    """The images of a table that can be used.

    Attributes:
        names: Names of the files, each once.
        labels: int32, ``[N]``, rows of ``classes``.
        splits: int8, ``[N]``, rows of `SPLITS`.
        classes: The classes in their order.
        rows: int64, ``[N]``, the number of each image among the rows without a problem.
        bad: Names of the other images, each with the reason.
    """

    names: PathList
    labels: NDArray[np.int32]
    splits: NDArray[np.int8]
    classes: list[str]
    rows: NDArray[np.int64]
    bad: list[tuple[str, str]]

    def stamp(self, *more: bytes) -> str:
        """A hash of all that is known, and of ``more``."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for part in (self.names.data, self.names.ends, self.labels, self.splits):
            digest.update(part.data)
        for text in more:
            digest.update(text)
        return digest.hexdigest()

    def source(
        self, name: str, files: ImageFiles, notes: Iterable[str] = (), no_test: str = ""
    ) -> ImageSource:
        """The source whose images these are.

        Args:
            name: Name of the data set.
            files: The files.
            notes: Lines for the user.
            no_test: See `ImageSource`.

        Raises:
            InputError: There is no training image, two splits could be the validation split, or a
                split has classes that the training images lack.
        """
        present = np.unique(self.splits).tolist()
        found = [split for number, split in enumerate(SPLITS) if number in present]
        if TRAIN not in found:
            raise InputError(f"{files.root} has no image of the split train; add some")
        validation, evaluation = evaluation_splits(found, str(files.root), "images of the split {}")
        images = {}
        for split in (TRAIN, *filter(None, (validation, evaluation))):
            rows = np.flatnonzero(self.splits == SPLITS.index(split))
            images[split] = LabelledPaths()
            images[split].names = self.names.take(rows)
            images[split].labels = self.labels[rows].astype(np.int64)
        return ImageSource(
            name,
            files,
            TRAIN,
            self.classes,
            images,
            validation,
            evaluation,
            no_test or f"{files.root} has no image of a split val or test",
            self.bad,
            [*notes, *alike(self.classes), *self._compared(files, images)],
        )

    def _compared(self, files: ImageFiles, images: Mapping[str, LabelledPaths]) -> list[str]:
        """Notes on classes that a split lacks."""
        used = {
            split: [self.classes[label] for label in np.unique(one.labels)]
            for split, one in images.items()
        }
        train = used.pop(TRAIN)
        lacking = sorted(set(self.classes).difference(train, *used.values()))
        notes = [f"no image has the classes {some(lacking)}"] if lacking else []
        for split, classes in used.items():
            notes += compare_classes(split, f"the split {split} of {files.root}", train, classes)
        return notes


def read_table(
    rows: Iterable[Row], where: str, skip_bad: bool, classes: Sequence[str] | None = None
) -> ImageTable:
    """Collects rows and checks them.

    Args:
        rows: The rows of the table.
        where: Names the table in an error.
        skip_bad: Leave out images that cannot be used.
        classes: The classes in their order; None sorts them.

    Raises:
        InputError: Images cannot be used and may not be left out, or there is none.
    """
    labels, splits = array("i"), array("b")
    values: dict[str, int] = {}
    bad: list[tuple[str, str]] = []

    def good() -> Iterator[str]:
        for row in rows:
            if row.problem:
                bad.append((row.name, row.problem))
                continue
            labels.append(values.setdefault(row.label, len(values)))
            splits.append(SPLITS.index(row.split))
            yield row.name

    names = PathList(good())
    first_labels = np.frombuffer(labels, np.int32)
    parts = np.frombuffer(splits, np.int8)
    dropped = _drop_repeats(names, first_labels, parts, bad)
    if bad and not (skip_bad and len(dropped) < len(names)):
        raise unusable(where, bad)
    if not len(names):
        raise InputError(f"{where} holds no image; add some")
    order = sorted_classes(values) if classes is None else list(classes)
    new = np.array([order.index(one) if one in order else -1 for one in values], np.int32)
    kept = np.setdiff1d(np.arange(len(names)), np.array(dropped, np.int64))
    return ImageTable(names.take(kept), new[first_labels[kept]], parts[kept], order, kept, bad)


def _drop_repeats(
    names: PathList,
    labels: NDArray[np.int32],
    splits: NDArray[np.int8],
    bad: list[tuple[str, str]],
) -> list[int]:
    """Finds images that are listed several times; the first is kept if the labels agree.

    Returns:
        The rows to leave out.
    """
    dropped: list[int] = []
    for rows in repeated(names):
        name = names[rows[0]]
        if len({*labels[rows].tolist()}) > 1:
            bad.append((name, "listed with different labels"))
            dropped += rows
        else:
            several = len({*splits[rows].tolist()}) > 1
            bad.append((name, "listed in several splits" if several else "listed several times"))
            dropped += rows[1:]
    return dropped


def repeated(names: PathList) -> list[list[int]]:
    """The rows of each name that occurs several times.

    Hashes are compared first: a set of a million names would take 150 MB.

    Example:
        >>> repeated(PathList(["b", "a", "b"]))
        [[0, 2]]
    """
    hashes = np.fromiter(map(hash, names), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    groups: dict[str, list[int]] = {}
    for row in np.unique(np.concatenate([order[same], order[same + 1]])).tolist():
        groups.setdefault(names[row], []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def sorted_classes(labels: Iterable[str]) -> list[str]:
    """The labels in the order of the classes: numbers by size, all others as text.

    Example:
        >>> sorted_classes(["10", "9"]), sorted_classes(["owl", "10", "9"])
        (['9', '10'], ['10', '9', 'owl'])
    """
    found = list(labels)
    if all(one.isascii() and one.isdigit() for one in found):
        return sorted(found, key=lambda one: (int(one), one))
    return sorted(found)


def split_problem(split: str) -> str:
    """Why a value of the column with the split cannot be used; empty if it can."""
    if not split:
        return "no split"
    return "" if split in SPLITS else "unknown split"
