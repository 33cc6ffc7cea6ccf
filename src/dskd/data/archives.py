"""Where source files come from: a folder, a zip or a tar archive, all only ever read."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dskd.errors import InputError
from dskd.runtime.memory import require_memory

_LARGE = 64 * 2**20
# What an archive may hold. A few bytes may unpack to any number; the published ones have 186 MB.
_UNPACKED = 2**30
_TAR_MEMBERS = 2**10
_ZIP_MEMBERS = 2**20


class Files(ABC):
    """A tree of files to read.

    Attributes:
        root: The folder or the archive.
        names: Names relative to ``root``, sorted, with ``/`` between the parts; folders end in
            ``/``.
        stamp: A hash that changes when a file is added, removed, resized or written.
    """

    root: Path
    names: Sequence[str]
    stamp: str

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of the file ``name``; InputError when it is missing or unreadable."""

    def where(self, name: str) -> str:
        """The place of ``name`` as people know it, for errors and notes."""
        return str(self.root / name)

    def missing(self, name: str) -> InputError:
        """The error for a file that is not there."""
        return InputError(f"{self.where(name)} is missing; data.root must hold the published files")


class FolderFiles(Files):
    """The files under some parts of a folder.

    Args:
        root: The folder.
        parts: The files and folders in it that count; what else lies there is not looked at.
        depth: How many levels of folders to enter below ``root``.

    Raises:
        InputError: A folder cannot be listed.
    """

    def __init__(self, root: Path, parts: Iterable[str], depth: int = 0) -> None:
        self.root = root
        try:
            found = sorted(_walk(root, "", depth, frozenset(parts)))
        except OSError as error:
            raise InputError(f"cannot list {root}: {error}; check data.root") from error
        self._sizes = {name: size for name, size, _ in found}
        self.names = list(self._sizes)
        self.stamp = _hash(found)

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        if name not in self._sizes:
            raise self.missing(name)
        if self._sizes[name] > _LARGE:
            require_memory(self._sizes[name], f"the bytes of {self.where(name)}")
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {self.where(name)}: {error}") from error


class ZipFiles(Files):
    """The files under one folder of a zip archive, read in place; threads may share it.

    Args:
        path: The archive.
        top: The folder in it that the names are relative to, ending in ``/``.

    Raises:
        InputError: The archive is missing or damaged.
    """

    def __init__(self, path: Path, top: str) -> None:
        self.root = path
        self._top = top
        try:
            self._zip = zipfile.ZipFile(path)
            self.stamp = _archive_stamp(path)
            if len(self._zip.namelist()) > _ZIP_MEMBERS:
                raise ValueError(f"it has more than {_ZIP_MEMBERS} members")
        except Exception as error:  # zipfile and struct each raise their own
            raise _damaged(path, error) from error
        everything = (name for name in self._zip.namelist() if name.startswith(top))
        self.names = sorted({name[len(top) :] for name in everything} - {""})

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        try:
            member = self._zip.getinfo(self._top + name)
        except KeyError:
            raise self.missing(name) from None
        if member.file_size > _LARGE:
            require_memory(member.file_size, f"the bytes of {self.where(name)}")
        try:
            if member.file_size > _UNPACKED:
                raise ValueError(f"{name} has more than {_UNPACKED} bytes")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is packed in a way that cannot be read in parts")
            with self._zip.open(member) as file:  # no more than its size: it may unpack to more
                return file.read(member.file_size)
        except Exception as error:  # zipfile, zlib, lzma and bz2 each raise their own
            raise _damaged(self.root, error) from error

    def where(self, name: str) -> str:
        """See `Files.where`."""
        return str(self.root / self._top / name)


class TarFiles(Files):
    """A few named files of a tar archive, plain or in gzip, read in one pass.

    Links, devices and whatever else is no file of its own count as missing.

    Args:
        path: The archive.
        top: The folder in it that the names are relative to, ending in ``/``.
        wanted: The names of the files to find.

    Raises:
        InputError: The archive is missing.
    """

    def __init__(self, path: Path, top: str, wanted: Iterable[str]) -> None:
        self.root = path
        self._top = top
        self.names = sorted(wanted)
        self._bytes: dict[str, bytes] | None = None
        try:
            self.stamp = _archive_stamp(path)
        except OSError as error:
            raise _damaged(path, error) from error

    def read(self, name: str) -> bytes:
        """See `Files.read`. The first call reads all that is wanted, each is handed out once."""
        if self._bytes is None:
            try:
                self._bytes = self._unpack()
            except InputError:
                raise
            except Exception as error:  # tarfile, zlib, gzip and struct each raise their own
                raise _damaged(self.root, error) from error
        if name not in self._bytes:
            raise self.missing(name)
        return self._bytes.pop(name)

    def where(self, name: str) -> str:
        """See `Files.where`."""
        return str(self.root / self._top / name)

    def _unpack(self) -> dict[str, bytes]:
        found = {}
        with _opened(self.root) as file:
            bounded = _Bounded(file)
            with tarfile.open(fileobj=bounded, mode="r|") as tar:
                for count, member in enumerate(tar):
                    if count == _TAR_MEMBERS:
                        raise ValueError(f"it has more than {_TAR_MEMBERS} members")
                    if member.size > _UNPACKED:  # tarfile would look for its end for hours
                        raise ValueError(f"{member.name} has more than {_UNPACKED} bytes")
                    name = member.name.removeprefix("./").removeprefix(self._top)
                    if name in self.names and member.isfile() and not member.issparse():
                        require_memory(member.size, f"the bytes of {self.where(name)}")
                        stream = tar.extractfile(member)
                        found[name] = stream.read() if stream else b""
            while bounded.read(2**20):  # gzip checks its sum at the end
                pass
        return found


class _Bounded(io.BufferedIOBase):
    """A file of which no more than `_UNPACKED` bytes can be read."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._left = _UNPACKED

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file; ValueError where there is more."""
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {_UNPACKED} bytes")
        return data


def _opened(path: Path) -> io.BufferedIOBase:
    """A file, unpacked as it is read if it is in gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def existing_folder(root: Path) -> Path:
    """``root`` with ``~`` expanded, absolute; InputError when nothing is there."""
    path = root.expanduser().absolute()
    if not path.exists():
        raise InputError(f"data.root {path} does not exist; give the folder that holds the files")
    return path


def _walk(
    root: Path, prefix: str, depth: int, only: frozenset[str] | None = None
) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change of what lies in a folder and ``depth`` levels below it."""
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            if only is not None and entry.name not in only:
                continue
            name = prefix + entry.name
            if entry.is_dir():
                yield name + "/", 0, 0
                if depth > 0:
                    yield from _walk(root, name + "/", depth - 1)
            elif entry.is_file():
                facts = entry.stat()
                yield name, facts.st_size, facts.st_mtime_ns


def _archive_stamp(path: Path) -> str:
    facts = path.stat()
    return _hash([(path.name, facts.st_size, facts.st_mtime_ns)])


def _hash(rows: Iterable[tuple[str, int, int]]) -> str:
    digest = hashlib.sha256()
    for name, size, changed in rows:
        digest.update(os.fsencode(name) + f"\0{size}\0{changed}\n".encode())
    return digest.hexdigest()


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"cannot read the archive {path}: {type(error).__name__}: {error}; fetch it again"
    )
