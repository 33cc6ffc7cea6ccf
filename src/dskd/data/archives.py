"""Source files of data sets, and those in a zip or tar archive; all are only read."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from dskd.errors import InputError
from dskd.runtime.memory import require_memory

MEMORY_CHECKED = 64 * 2**20
"""Files of more bytes are only read if the memory for them is free."""
# Limits on untrusted archives: a few bytes can unpack to any number. Published ones have 186 MB.
_MAX_UNPACKED = 2**30
_MAX_TAR_MEMBERS = 2**10
_MAX_ZIP_MEMBERS = 2**20


class Files(ABC):
    """A read-only tree of files.

    Attributes:
        root: The folder or the archive.
        names: Sorted names relative to ``root``, separated by ``/``; names of folders end in ``/``.
        stamp: A hash of names, sizes and times of change.
    """

    root: Path
    names: Sequence[str]
    stamp: str

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read the file ``name``; InputError if it is missing or unreadable."""

    def where(self, name: str) -> str:
        """The full path of ``name``, for messages."""
        return str(self.root / name)

    def missing(self, name: str) -> InputError:
        """The error for a missing file."""
        return InputError(f"{self.where(name)} is missing; data.root must hold the published files")


def read_bytes(path: Path, where: str) -> bytes:
    """The bytes of a file; ``where`` names it in the error.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {where}: {error}") from error


class ZipFiles(Files):
    """The files in one folder of a zip archive, read without unpacking to disk; thread-safe.

    Args:
        path: The archive.
        top: The folder in the archive, ending in ``/``; names are relative to it.

    Raises:
        InputError: The archive is missing or damaged.
    """

    def __init__(self, path: Path, top: str) -> None:
        self.root = path
        self._top = top
        try:
            self._zip = zipfile.ZipFile(path)
            self.stamp = _archive_stamp(path)
            if len(self._zip.namelist()) > _MAX_ZIP_MEMBERS:
                raise ValueError(f"it has more than {_MAX_ZIP_MEMBERS} members")
        except Exception as error:  # zipfile and struct raise many types
            raise _damaged(path, error) from error
        everything = (name for name in self._zip.namelist() if name.startswith(top))
        self.names = sorted({name[len(top) :] for name in everything} - {""})

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        try:
            member = self._zip.getinfo(self._top + name)
        except KeyError:
            raise self.missing(name) from None
        if member.file_size > MEMORY_CHECKED:
            require_memory(member.file_size, f"the bytes of {self.where(name)}")
        try:
            if member.file_size > _MAX_UNPACKED:
                raise ValueError(f"{name} has more than {_MAX_UNPACKED} bytes")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} has a compression that cannot be read in parts")
            with self._zip.open(member) as file:  # a damaged member may unpack to more
                return file.read(member.file_size)
        except Exception as error:  # zipfile, zlib, lzma and bz2 raise many types
            raise _damaged(self.root, error) from error

    def where(self, name: str) -> str:
        """See `Files.where`."""
        return str(self.root / self._top / name)


class TarFiles(Files):
    """A few named files of a tar archive (plain or gzip), read in one pass.

    Links, devices and other special members count as missing.

    Args:
        path: The archive.
        top: The folder in the archive, ending in ``/``; names are relative to it.
        wanted: Names of the files to find.

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
        """See `Files.read`. The first call reads all wanted files; each can be taken once."""
        if self._bytes is None:
            try:
                self._bytes = self._unpack()
            except InputError:
                raise
            except Exception as error:  # tarfile, zlib, gzip and struct raise many types
                raise _damaged(self.root, error) from error
        if name not in self._bytes:
            raise self.missing(name)
        return self._bytes.pop(name)

    def where(self, name: str) -> str:
        """See `Files.where`."""
        return str(self.root / self._top / name)

    def _unpack(self) -> dict[str, bytes]:
        found = {}
        with _open(self.root) as file:
            bounded = _BoundedReader(file)
            with tarfile.open(fileobj=bounded, mode="r|") as tar:
                for count, member in enumerate(tar):
                    if count == _MAX_TAR_MEMBERS:
                        raise ValueError(f"it has more than {_MAX_TAR_MEMBERS} members")
                    if member.size > _MAX_UNPACKED:  # tarfile would search its end for hours
                        raise ValueError(f"{member.name} has more than {_MAX_UNPACKED} bytes")
                    name = member.name.removeprefix("./").removeprefix(self._top)
                    if name in self.names and member.isfile() and not member.issparse():
                        require_memory(member.size, f"the bytes of {self.where(name)}")
                        stream = tar.extractfile(member)
                        found[name] = stream.read() if stream else b""
            while bounded.read(2**20):  # gzip verifies its checksum at the end
                pass
        return found


class _BoundedReader(io.BufferedIOBase):
    """A file that fails once more than `_MAX_UNPACKED` bytes were read."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._left = _MAX_UNPACKED

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as from any file; ValueError beyond the limit."""
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {_MAX_UNPACKED} bytes")
        return data


def _open(path: Path) -> io.BufferedIOBase:
    """Open a file; a gzip file is decompressed while it is read."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else path.open("rb")


def existing_path(root: Path) -> Path:
    """The absolute path of ``root`` with ``~`` expanded; InputError if it does not exist."""
    path = root.expanduser().absolute()
    if not path.exists():
        raise InputError(f"data.root {path} does not exist; give the folder that holds the files")
    return path


def _archive_stamp(path: Path) -> str:
    facts = path.stat()
    return stamp_of_rows([(path.name, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)])


def stamp_of_rows(rows: Iterable[tuple[str, int, int, int]]) -> str:
    """A hash of names, sizes and times of change."""
    digest = hashlib.sha256()
    for name, *stamp in rows:
        digest.update(os.fsencode(name) + "".join(f"\0{one}" for one in stamp).encode() + b"\n")
    return digest.hexdigest()


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"cannot read the archive {path}: {type(error).__name__}: {error}; fetch it again"
    )
