"""What every source of your own images offers: names, labels, and a way to read bytes.

A source is a folder, a manifest, a data set of the library ``datasets``, or shards. Each module of
a source finds its images and decodes none. `dskd.data.own_images` makes the data set, in the same
way for all.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dskd.data.archives import Files
from dskd.data.path_list import LabelledPaths, PathList
from dskd.errors import InputError, printable

TRAIN = "train"
VALIDATION = ("val", "valid", "validation")
TEST = "test"
EVALUATION = (*VALIDATION, TEST)

SHOWN = 5
"""Names that a message lists."""


class SomeFiles(Files):
    """The image files of a split, in its order.

    Attributes:
        names: Their names.
    """

    names: PathList

    @abstractmethod
    def take(self, indices: NDArray[np.int64]) -> SomeFiles:
        """The files at ``indices``."""


class ImageFiles(Files):
    """All image files of a source.

    Attributes:
        names: Their names, each once. There may be names of other files among them.
    """

    names: PathList

    @abstractmethod
    def facts_of(self, names: PathList) -> NDArray[np.int64]:
        """Numbers that differ if a file differs, int64 ``[N, k]``.

        Args:
            names: Some of the names; in the order of all they are found in one pass.
        """

    def part(self, names: PathList) -> SomeFiles:
        """Some of the files.

        Args:
            names: As for `facts_of`.
        """
        return _Part(self, names)


class _Part(SomeFiles):
    """Some files of a source, which reads them."""

    def __init__(self, whole: ImageFiles, names: PathList) -> None:
        self.root, self.names, self._whole = whole.root, names, whole

    @property
    def stamp(self) -> str:  # type: ignore[override]
        """See `Files`."""
        digest = hashlib.sha256(self._whole.stamp.encode())
        for part in (self.names.data, self.names.ends):
            digest.update(part.data)
        return digest.hexdigest()

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        return self._whole.read(name)

    def where(self, name: str) -> str:
        """See `Files.where`."""
        return self._whole.where(name)

    def take(self, indices: NDArray[np.int64]) -> SomeFiles:
        """See `SomeFiles.take`."""
        return _Part(self._whole, self.names.take(indices))


@dataclass(frozen=True)
class ImageSource:
    """The images that were found, before any is decoded.

    Attributes:
        name: Name of the data set, such as ``"folder"``.
        files: The files of the source.
        train: Name of the training split, a key of ``images``.
        classes: The names of the classes, by label.
        images: Names and labels of the images of each split; the training split comes first.
        validation: Name of the validation split, if there is a test split too; else empty.
        evaluation: Name of the test split; empty if there is none.
        no_test: Says that there is no test split, as the beginning of a sentence.
        bad: Images that cannot be used, each with the reason.
        notes: Lines about what is ignored or unusual.
    """

    name: str
    files: ImageFiles
    train: str
    classes: list[str]
    images: dict[str, LabelledPaths]
    validation: str = ""
    evaluation: str = ""
    no_test: str = "there is no test split"
    bad: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def all_names(self) -> PathList:
        """Names of the images of all splits, one split after the other."""
        return PathList(name for split in self.images.values() for name in split.names)


def evaluation_splits(found: Sequence[str], where: str, named: str = "{}") -> tuple[str, str]:
    """The validation split and the test split, each perhaps empty.

    Args:
        found: Names of all splits.
        where: Names the source in an error.
        named: How a split is called in an error, with ``{}`` for its name.

    Raises:
        InputError: Two could be the validation split.

    Example:
        >>> evaluation_splits(["train", "val"], "photos")
        ('', 'val')
        >>> evaluation_splits(["train", "valid", "test"], "photos")
        ('valid', 'test')
    """
    several = [name for name in VALIDATION if name in found]
    if len(several) > 1:
        raise InputError(
            f"{where} has {' and '.join(map(named.format, several))}, and one validation split is "
            "needed; rename or remove the others"
        )
    (validation,) = several or [""]
    return (validation, TEST) if TEST in found else ("", validation)


def some(names: Sequence[str]) -> str:
    """The first names of a list, for a message.

    Example:
        >>> some(["a", "b"]), some(list("abcdefg"))
        ('a, b', 'a, b, c, d, e and 2 more')
    """
    shown = ", ".join(map(printable, names[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def rows_of(names: PathList, every: PathList) -> NDArray[np.int64]:
    """Where names are in a list of all, int64 ``[N]``.

    The search for a name begins behind the one before, so names in the order of all are found in
    one pass.

    Raises:
        KeyError: A name is not there.

    Example:
        >>> rows_of(PathList(["b", "d", "a"]), PathList("abcd")).tolist()
        [1, 3, 0]
    """
    rows, row = np.empty(len(names), np.int64), 0
    for index, name in enumerate(names):
        for _ in range(len(every)):
            if every[row] == name:
                break
            row = (row + 1) % len(every)
        else:
            raise KeyError(name)
        rows[index] = row
        row = (row + 1) % len(every)
    return rows
