"""Checksummed records of fixed size on disk, safe for concurrent writers.

A record file is a folder of three files. ``facts.json`` says in plain words what the records are.
``records.bin`` holds them one after the other. ``checks.bin`` holds a checksum of each. A record
exists if and only if its checksum fits. So writes need no order and no flush: after a kill, a power
cut or on a damaged disk, a record is either right or absent. The files are sparse: records that
were never written take no room.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from dskd.errors import InputError
from dskd.runtime.memory import readable
from dskd.storage.atomic import PART, check_writable, explain_disk_errors, replace_file, sweep
from dskd.storage.json_file import read_json
from dskd.storage.lock import LOCK

log = logging.getLogger("dskd")

RESERVE = 256 * 2**20
"""Bytes of the disk that stay free."""

FACTS, RECORDS, CHECKS = "facts.json", "records.bin", "checks.bin"
_WORDS_A_FACTOR = 4
_SEED = 0x64736B64

CHECKSUM_BYTES = 8
"""Bytes of the checksum of a record."""

Words = NDArray[np.int16]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


def require_room(path: Path, needed: int) -> None:
    """Refuses records that the disk cannot hold.

    Args:
        path: The folder of the records. It need not exist.
        needed: Bytes that still need disk space.

    Raises:
        InputError: There is too little space; the message names both sizes.
    """
    there = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(there).free
    if needed and needed + RESERVE > free:
        raise InputError(
            f"the teacher outputs in {path} still need {readable(needed)} of disk and "
            f"{readable(RESERVE)} to spare, {readable(free)} are free; free some, choose a "
            "folder on another disk with teacher.cache_dir, or keep fewer: fewer views "
            "(teacher.views with teacher.cache=features), or none with teacher.cache=none"
        )


class RecordFile:
    """Records of two-byte words, by number.

    Args:
        path: The folder. It need not exist yet.
        facts: What the records are, as plain values. A folder with other facts is refused.
        records: Number of records.
        words: Two-byte words of a record.

    Attributes:
        words: Of a stored record, a multiple of 4. Its last words may be unused.
        size: Bytes of the files when all records exist.

    Example:
        >>> squares = RecordFile(Path(tempfile.mkdtemp()) / "squares", {"of": "squares"}, 100, 4)
        >>> squares.open()
        >>> squares.add(np.array([7]), np.full((1, 4), 49, np.int16))
        >>> words, there = squares.read(np.array([6, 7]))
        >>> words[1].tolist(), there.tolist()
        ([49, 49, 49, 49], [False, True])
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], records: int, words: int) -> None:
        self.path = path
        self.facts = json.loads(json.dumps(facts, default=str))
        self.words = -(-words // _WORDS_A_FACTOR) * _WORDS_A_FACTOR
        self._sizes = {RECORDS: records * self.words * 2, CHECKS: records * CHECKSUM_BYTES}
        self.size = sum(self._sizes.values())
        checked = self.words // _WORDS_A_FACTOR
        # Odd factors: a change of any single word changes the checksum.
        self._factors = np.random.Philox(_SEED).random_raw(checked).astype(np.uint64) | np.uint64(1)
        self._lock = FileLock(path / LOCK)
        self._records: Words = np.empty((0, self.words), np.int16)
        self._checks: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._damage_told = False

    def missing_bytes(self) -> int:
        """Bytes that still need disk space."""
        return 0 if self.complete else self.size - sum(map(self._held, self._sizes))

    @property
    def complete(self) -> bool:
        """Whether the files are loaded and every record exists; then nothing is written."""
        return bool(self._checks.all()) and len(self._checks) > 0

    def require_writable(self) -> None:
        """Refuses a folder that lacks records and cannot be written to. Leaves no file behind.

        Raises:
            InputError: It cannot be written to; the message gives the reason.
        """
        if self.complete:
            return
        check_writable(self.path, "teacher.cache_dir")
        try:
            for path in [self.path / name for name in (RECORDS, CHECKS, LOCK)]:
                if path.is_file():  # those of another user, in a folder that all may write to
                    path.open("r+b").close()
        except OSError as error:
            raise InputError(
                f"{self.path} lacks outputs of this teacher and cannot be written to: "
                f"{error.strerror or error}; choose another folder with teacher.cache_dir"
            ) from error

    def _held(self, name: str) -> int:
        """Bytes of a file that already have disk space."""
        try:
            state = (self.path / name).stat()
        except OSError:
            return 0
        return min(getattr(state, "st_blocks", 0) * 512, self._sizes[name])

    def open(self) -> None:
        """Makes the folder if there is none, and verifies it.

        Raises:
            InputError: The disk cannot hold it, or the folder is damaged or holds something else.
        """
        require_room(self.path, self.missing_bytes())
        sweep(self.path.parent, self.path.name)
        try:
            if not self.path.is_dir():
                self._make()
            self.load()
        except OSError as error:
            raise InputError(
                f"cannot cache teacher outputs in {self.path}: {error.strerror or error}; "
                "choose another folder with teacher.cache_dir"
            ) from error

    def load(self) -> None:
        """Verifies and maps the files; writes nothing.

        Raises:
            InputError: The folder is damaged or holds something else.
            OSError: It cannot be read.
        """
        self._verify()
        records = np.memmap(self.path / RECORDS, np.int16, "r").reshape(-1, self.words)
        self._records = np.asarray(records)
        self._checks = np.asarray(np.memmap(self.path / CHECKS, np.uint64, "r"))

    def _make(self) -> None:
        """Makes the folder, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=PART)
        part = Path(name)
        try:
            for name, size in self._sizes.items():
                with (part / name).open("wb") as file:
                    file.truncate(size)
                    os.fsync(file.fileno())
            replace_file(part / FACTS, (json.dumps(self.facts, indent=2) + "\n").encode())
            part.chmod(0o755)
            part.rename(self.path)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            if not self.path.is_dir():  # another process may have made it first
                raise

    def _verify(self) -> None:
        """Refuses files of other facts or other sizes."""
        fix = f"remove the folder {self.path} to compute them again"
        facts = read_json(self.path / FACTS, dict[str, Any], fix)
        if facts != self.facts:
            raise InputError(f"{self.path} holds other teacher outputs than its name says; {fix}")
        for name, size in self._sizes.items():
            path = self.path / name
            found = path.stat().st_size if path.is_file() else 0
            if found != size:
                raise InputError(f"{path} is damaged: it has {found} of {size} bytes; {fix}")

    def filled(self) -> float:
        """Share of the records that exist."""
        return np.count_nonzero(self._checks) / len(self._checks)

    def read(self, indices: Indices) -> tuple[Words, Mask]:
        """Reads records by number.

        Args:
            indices: int64 ``[B]``.

        Returns:
            int16 ``[B, words]``, and bool ``[B]``: whether each record exists. The words of a
            record that does not exist are arbitrary.
        """
        # Checksums first: a record that another process is adding has none until it is whole.
        checks = self._checks.take(indices)
        # Reads record 0 in place of one that was never written: a read there would allocate pages.
        words = self._records.take(np.where(checks, indices, 0), axis=0)
        there = checks == self._checks_of(words)
        if not self._damage_told and (checks[~there] != 0).any():
            self._damage_told = True
            log.warning("%s: some records are damaged; the teacher computes them again", self.path)
        return words, there

    def _checks_of(self, words: Words) -> NDArray[np.uint64]:
        """The checksum of each record; never 0, which stands for no record."""
        sums = np.einsum("ij,j->i", words.view(np.uint64), self._factors) + np.uint64(_SEED)
        checks: NDArray[np.uint64] = np.maximum(sums, np.uint64(1))
        return checks

    def add(self, indices: Indices, words: Words) -> None:
        """Adds records; existing ones stay as they are.

        Args:
            indices: int64 ``[B]``, all different.
            words: int16 ``[B, words]``.

        Raises:
            OSError: The disk is full.
        """
        if self.read(indices)[1].all():  # no lock, as the folder of another user may be read-only
            return
        words = np.ascontiguousarray(words)
        with self._lock:
            new = ~self.read(indices)[1]
            self._write(RECORDS, indices[new], words[new])
            self._write(CHECKS, indices[new], self._checks_of(words[new])[:, None])

    def _write(self, name: str, indices: Indices, rows: NDArray[Any]) -> None:
        # Not through the memory map: on a full disk that kills the process without a message.
        path = self.path / name
        with explain_disk_errors(path, lambda: rows.nbytes), path.open("r+b") as file:
            for index, row in zip(indices.tolist(), rows, strict=True):
                file.seek(index * row.nbytes)
                file.write(row.data)
