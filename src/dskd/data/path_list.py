"""A compact list of file names."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class PathList(Sequence[str]):
    """Names of files in two arrays: a million names of 40 bytes take 48 MB.

    A list of strings takes three times as much. Its reference counts would also have forked
    processes copy it, page by page.

    Args:
        names: The names.

    Attributes:
        data: uint8, the bytes of all names.
        ends: int64, ``[N]``, where each name ends in ``data``.

    Example:
        >>> paths = PathList(["a/1.png", "b/2.png", "b/3.png"])
        >>> paths[-1], list(paths.take(np.array([1, 0])))
        ('b/3.png', ['b/2.png', 'a/1.png'])
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        joined, ends = bytearray(), array("q")
        for name in names:
            joined += os.fsencode(name)
            ends.append(len(joined))
        self.data = np.frombuffer(joined, np.uint8)
        self.ends = np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> PathList: ...
    def __getitem__(self, index: int | slice) -> str | PathList:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.data[start : self.ends[index]].tobytes())

    def take(self, indices: NDArray[np.int64]) -> PathList:
        """The names at ``indices``, in that order."""
        starts = np.concatenate([[0], self.ends[:-1]])[indices]
        lengths = self.ends[indices] - starts
        chosen = PathList()
        chosen.ends = np.cumsum(lengths)
        chosen.data = np.empty(int(lengths.sum()), np.uint8)
        # In pieces, because the index of each byte takes eight bytes.
        for first in range(0, len(indices), _PIECE):
            part = slice(first, first + _PIECE)
            ends = chosen.ends[part]
            low = int(ends[0] - lengths[first])
            shift = np.repeat(starts[part] - (ends - lengths[part]), lengths[part])
            chosen.data[low : int(ends[-1])] = self.data[np.arange(low, int(ends[-1])) + shift]
        return chosen


_PIECE = 2**14
"""Names that are copied at a time."""


class LabelledPaths(Sequence[tuple[str, int]]):
    """Names of files with a label each, in three arrays.

    Args:
        pairs: The names and their labels.

    Attributes:
        names: The names.
        labels: int64, ``[N]``.

    Example:
        >>> paths = LabelledPaths([("cat/1.png", 0), ("dog/2.png", 1)])
        >>> paths[1], paths.take(np.array([1])).labels.tolist()
        (('dog/2.png', 1), [1])
    """

    def __init__(self, pairs: Iterable[tuple[str, int]] = ()) -> None:
        labels = array("q")

        def names() -> Iterator[str]:
            for name, label in pairs:
                labels.append(label)
                yield name

        self.names = PathList(names())
        self.labels = np.frombuffer(labels, np.int64)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, index: slice) -> LabelledPaths: ...
    def __getitem__(self, index: int | slice) -> tuple[str, int] | LabelledPaths:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self.names[index], int(self.labels[index])

    def take(self, indices: NDArray[np.int64]) -> LabelledPaths:
        """The part at ``indices``, in that order."""
        chosen = LabelledPaths()
        chosen.names, chosen.labels = self.names.take(indices), self.labels[indices]
        return chosen
