"""Write checkpoints atomically, and verify them before they are used.

A checkpoint file is `MAGIC`, the SHA-256 of everything after it, and a state as `torch.save`
writes it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from pathlib import Path
from typing import IO, Any, cast

import torch

from dskd.errors import first_line
from dskd.storage.atomic import explain_disk_errors, make_folder, replacing

MAGIC = b"DSKD checkpoint 2\n"
"""The number grows whenever the state has other parts."""
PARTS: dict[str, type] = {
    "epoch": int,
    "step": int,
    "trainer": dict,
    "best": dict,
    "rows": list,
    "fingerprints": dict,
    "recipe": dict,
}
"""The parts that every state has, and their types."""
HEADER_BYTES = len(MAGIC) + hashlib.sha256().digest_size
FILE_PATTERN = "epoch*-step*.checkpoint"
_CHUNK_BYTES = 2**20


class DamagedCheckpoint(ValueError):
    """A checkpoint does not hold what was written, or cannot be read."""


def write(folder: Path, state: dict[str, Any], previous: Path | None = None) -> Path:
    """Writes a checkpoint and removes all others but the previous one.

    The file is flushed, read back, verified, and then named by its epoch and step. Only then are
    the others removed: older checkpoints, and those that a resumed run could not use.

    Args:
        folder: The folder of the checkpoints; created if it is missing.
        state: Has `PARTS`. Holds tensors, numbers, strings and plain containers of these.
        previous: The checkpoint that the run wrote last, or resumed from. It stays.

    Returns:
        The path of the new checkpoint.

    Raises:
        OSError: The checkpoint could not be written. The message gives its size; the checkpoints
            that were there are unchanged.
    """
    path = folder / f"epoch{state['epoch']:05d}-step{state['step']:07d}.checkpoint"
    with explain_disk_errors(path, lambda: _size(state)):
        make_folder(folder)
        with replacing(path, _verify_written) as file:
            file.write(bytes(HEADER_BYTES))
            writer = _write_state(state, file)
            writer.raise_failure()
            file.seek(0)
            file.write(MAGIC + writer.checksum.digest())
    for other in in_order(folder):
        if other not in (path, previous):
            other.unlink()
    return path


def _write_state(state: dict[str, Any], file: IO[bytes]) -> _ChecksumWriter:
    writer = _ChecksumWriter(file)
    torch.save(state, cast(IO[bytes], writer))
    return writer


def _size(state: dict[str, Any]) -> int:
    """The size of a checkpoint in bytes."""
    with Path(os.devnull).open("wb") as nowhere:
        return HEADER_BYTES + _write_state(state, nowhere).size


class _ChecksumWriter:
    """Passes bytes on to a file, and computes their checksum and number.

    A failed write is stored and raised later by `raise_failure`: `torch.save` would turn an
    exception within it into an error of its own.

    Args:
        file: The file to write to.

    Attributes:
        checksum: SHA-256 of the bytes that were written.
        size: Number of bytes that were to be written.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.checksum, self.size = hashlib.sha256(), 0
        self._file = file
        self._failure: BaseException | None = None

    def write(self, data: memoryview) -> int:
        """Writes bytes, unless an earlier write has failed."""
        self.size += len(data)
        if self._failure is None:
            try:
                self._file.write(data)
                self.checksum.update(data)
            except BaseException as error:  # Ctrl-C too
                self._failure = error
        return len(data)

    def flush(self) -> None:
        """Does nothing: the whole file is flushed at its end."""

    def raise_failure(self) -> None:
        """Raises the error of the first write that failed."""
        if self._failure is not None:
            raise self._failure


def _verify_written(file: IO[bytes]) -> None:
    header, found = file.read(HEADER_BYTES), hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        found.update(chunk)
    if header != MAGIC + found.digest():
        raise OSError(errno.EIO, "the bytes read back differ from those written")


def in_order(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; empty if there is no folder."""
    return sorted(folder.glob(FILE_PATTERN), key=lambda path: _epoch_and_step(path.name))


def _epoch_and_step(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def read(path: Path) -> dict[str, Any]:
    """Reads and verifies a checkpoint.

    Args:
        path: The checkpoint.

    Returns:
        The state, with its tensors on the CPU.

    Raises:
        DamagedCheckpoint: The file does not hold what was written, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            header, payload = file.read(HEADER_BYTES), file.read()
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    if header[: len(MAGIC)] != MAGIC:
        raise DamagedCheckpoint(f"{path} is damaged, or was written by another version of dskd")
    if header[len(MAGIC) :] != hashlib.sha256(payload).digest():
        raise DamagedCheckpoint(f"{path} is damaged: its checksum is wrong")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zip and pickle raise many kinds of errors
        raise DamagedCheckpoint(f"{path} cannot be loaded: {first_line(error)}") from error
    if not isinstance(state, dict) or any(type(state.get(k)) is not v for k, v in PARTS.items()):
        raise DamagedCheckpoint(f"{path} is damaged: it does not hold the state of a run")
    return state


def read_newest(folder: Path) -> tuple[dict[str, Any] | None, Path | None, list[str]]:
    """Reads the newest checkpoint that is not damaged.

    Args:
        folder: The folder of the checkpoints; it need not exist.

    Returns:
        The state and the path of the checkpoint, or None if there is none. And one line for each
        newer checkpoint, which is damaged.
    """
    damaged: list[str] = []
    for path in reversed(in_order(folder)):
        try:
            return read(path), path, damaged
        except DamagedCheckpoint as error:
            damaged.append(str(error))
    return None, None, damaged
