"""Files of a folder, which are only read."""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dskd.data.archives import MEMORY_CHECKED, read_bytes, stamp_of_rows
from dskd.data.image_source import ImageFiles, SomeFiles, rows_of
from dskd.data.path_list import PathList
from dskd.errors import InputError
from dskd.runtime.memory import require_memory


class FolderFiles(ImageFiles):
    """The files in some parts of a folder.

    The times of change are those of the content and of the inode. The second also changes when a
    file takes the place of another of the same size and content time.

    Args:
        root: The folder.
        parts: The files and folders in it to include; all others are ignored.
        depth: Levels of folders to enter below ``root``; None for all.

    Attributes:
        unreadable: Why a name cannot be read as a file, such as a dangling link.

    Raises:
        InputError: A folder cannot be listed.
    """

    def __init__(self, root: Path, parts: Iterable[str], depth: int | None = 0) -> None:
        self.root = root
        try:
            facts = root.stat()
            above = frozenset({(facts.st_dev, facts.st_ino)})
            self.names = PathList(self._noted(_walk(root, "", depth, above, frozenset(parts))))
        except OSError as error:
            raise InputError(f"cannot list {root}: {error}; check its permissions") from error
        rows = zip(self.names, np.reshape(self._stamps, (-1, 3)), strict=True)
        self.stamp = stamp_of_rows((name, *row.tolist()) for name, row in rows)

    def _noted(self, entries: Iterable[_Entry]) -> Iterator[str]:
        """The names of the entries; notes what else is known of each."""
        self.unreadable: dict[str, str] = {}
        self._stamps = array("q")
        for entry in entries:
            self._stamps.extend((entry.size, entry.changed, entry.moved))
            if entry.problem:
                self.unreadable[entry.name] = entry.problem
            yield entry.name

    def _stamp(self, name: str) -> array[int]:
        """Size and times of change of a file; KeyError if there is none."""
        row = bisect_left(self.names, name)
        if row == len(self.names) or self.names[row] != name:
            raise KeyError(name)
        return self._stamps[3 * row : 3 * row + 3]

    def size_of(self, name: str) -> int:
        """The bytes of a file."""
        return self._stamp(name)[0]

    def sizes(self) -> Iterator[tuple[str, int]]:
        """The name and the bytes of each file."""
        return zip(self.names, self._stamps[::3], strict=True)

    def facts_of(self, names: PathList) -> NDArray[np.int64]:
        """See `ImageFiles.facts_of`: size and times of change of content and inode."""
        stamps = np.frombuffer(self._stamps, np.int64).reshape(-1, 3)
        return stamps[rows_of(names, self.names)]

    def part(self, names: PathList) -> ListedFiles:
        """See `ImageFiles.part`."""
        facts = self.facts_of(names)
        return ListedFiles(self.root, names, facts[:, 0].copy(), facts[:, 1].copy())

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        try:
            size = self.size_of(name)
        except KeyError:
            raise self.missing(name) from None
        if size > MEMORY_CHECKED:
            require_memory(size, f"the bytes of {self.where(name)}")
        return read_bytes(self.root / name, self.where(name))


class ListedFiles(SomeFiles):
    """Files of a folder that were listed before.

    Args:
        root: The folder.
        names: Names relative to it.
        sizes: int64, ``[N]``, bytes of each file.
        changed: int64, ``[N]``, time of the last change of each file, in nanoseconds.
    """

    def __init__(
        self, root: Path, names: PathList, sizes: NDArray[np.int64], changed: NDArray[np.int64]
    ) -> None:
        self.root = root
        self.names: PathList = names
        self.sizes, self.changed = sizes, changed

    @property
    def stamp(self) -> str:  # type: ignore[override]
        """See `Files`."""
        digest = hashlib.sha256()
        for part in (self.names.data, self.names.ends, self.sizes, self.changed):
            digest.update(part.data)
        return digest.hexdigest()

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        return read_bytes(self.root / name, self.where(name))

    def take(self, indices: NDArray[np.int64]) -> ListedFiles:
        """The files at ``indices``."""
        chosen = self.sizes[indices], self.changed[indices]
        return ListedFiles(self.root, self.names.take(indices), *chosen)


def names_below(root: Path, folder: str, depth: int | None = None) -> Iterator[str]:
    """The names of the files below a folder, found one after the other.

    Args:
        root: Names are relative to it.
        folder: A folder in it.
        depth: Levels to enter below the folder; None for all.

    Raises:
        OSError: A folder cannot be listed.
    """
    facts = root.stat()
    above = frozenset({(facts.st_dev, facts.st_ino)})
    for entry in _walk(root, f"{folder}/", depth, above):
        if not entry.name.endswith("/"):
            yield entry.name


class _Entry(NamedTuple):
    """A file or folder, with its size and times of change; ``problem`` if it cannot be read."""

    name: str
    size: int = 0
    changed: int = 0
    moved: int = 0
    problem: str = ""


def _walk(
    root: Path,
    prefix: str,
    depth: int | None,
    above: frozenset[tuple[int, int]],
    only: frozenset[str] | None = None,
) -> Iterator[_Entry]:
    """The files and folders down to ``depth`` levels below a folder, sorted by name.

    Args:
        root: The folder.
        prefix: The folder in it that is listed.
        depth: Levels to enter; None for all.
        above: Device and inode of the folders above, where a link may lead back to.
        only: Names that count on this level; None for all.
    """
    with os.scandir(root / prefix) as found:
        entries = [entry for entry in found if only is None or entry.name in only]
    # A folder counts with its slash, as in the names of what is in it.
    for entry in sorted(entries, key=lambda one: one.name + "/" * one.is_dir()):
        name = prefix + entry.name
        if entry.is_dir():
            yield _Entry(name + "/")
            facts = entry.stat()
            place = facts.st_dev, facts.st_ino
            if depth != 0 and place not in above:
                below = None if depth is None else depth - 1
                yield from _walk(root, name + "/", below, above | {place})
        elif entry.is_file():
            facts = entry.stat()
            yield _Entry(name, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        else:
            yield _Entry(name, problem="dangling link" if entry.is_symlink() else "no file")
