"""Checkpoints: files that are whole or not there, and are verified before they are trusted.

A file is `MAGIC`, then the SHA-256 of all that follows, then a state as `torch.save` writes it.
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
from dskd.storage.atomic import make_folder, replacing, telling

MAGIC = b"DSKD checkpoint 2\n"
"""Another number wherever a state has other parts."""
PARTS: dict[str, type] = {
    "epoch": int,
    "step": int,
    "trainer": dict,
    "best": dict,
    "rows": list,
    "given": dict,
    "recipe": dict,
}
"""What a state has at least."""
HEADER = len(MAGIC) + hashlib.sha256().digest_size
NAMES = "epoch*-step*.checkpoint"
_CHUNK = 2**20


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was written."""


def write(folder: Path, state: dict[str, Any], before: Path | None = None) -> Path:
    """Writes a checkpoint of a state that has `PARTS`, named by its epoch and step.

    It gets its name once it was flushed, read back and verified; only then all others go but the
    one before: older ones, and those that a resumed run could not use.

    Args:
        folder: Made where it is missing.
        state: Tensors, numbers, strings and plain containers of these.
        before: The checkpoint that the run wrote last, or went on from; it is kept.

    Returns:
        Where it lies.

    Raises:
        OSError: It could not be written; the bytes that it needed are named, and those that are
            there are untouched.
    """
    path = folder / f"epoch{state['epoch']:05d}-step{state['step']:07d}.checkpoint"
    with telling(path, lambda: _size(state)):
        make_folder(folder)
        with replacing(path, _verify_written) as file:
            file.write(bytes(HEADER))
            summed = _summed(state, file)
            summed.check()
            file.seek(0)
            file.write(MAGIC + summed.sum.digest())
    for other in in_order(folder):
        if other not in (path, before):
            other.unlink()
    return path


def _summed(state: dict[str, Any], file: IO[bytes]) -> _Summed:
    """Writes a state into a file, and says what was written."""
    summed = _Summed(file)
    torch.save(state, cast(IO[bytes], summed))
    return summed


def _size(state: dict[str, Any]) -> int:
    """Bytes of a checkpoint."""
    with Path(os.devnull).open("wb") as nowhere:
        return HEADER + _summed(state, nowhere).size


class _Summed:
    """Passes on what is written, sums it up and counts it.

    A failure is kept for `check`: raised within `torch.save`, it would become an error of torch's.

    Args:
        file: Where it goes.

    Attributes:
        sum: SHA-256 of what was written.
        size: Bytes that were to be written.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.sum, self.size = hashlib.sha256(), 0
        self._file = file
        self._failure: BaseException | None = None

    def write(self, data: memoryview) -> int:
        """Writes on, unless a write has failed."""
        self.size += len(data)
        if self._failure is None:
            try:
                self._file.write(data)
                self.sum.update(data)
            except BaseException as error:  # Ctrl-C too
                self._failure = error
        return len(data)

    def flush(self) -> None:
        """Nothing: the whole file is flushed at its end."""

    def check(self) -> None:
        """Raises what a write has raised."""
        if self._failure is not None:
            raise self._failure


def _verify_written(file: IO[bytes]) -> None:
    header, found = file.read(HEADER), hashlib.sha256()
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    if header != MAGIC + found.digest():
        raise OSError(errno.EIO, "what was written is read back otherwise")


def in_order(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; none where there is no folder."""
    return sorted(folder.glob(NAMES), key=lambda path: _numbers(path.name))


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def read(path: Path) -> dict[str, Any]:
    """A verified checkpoint's state, with its tensors on the CPU.

    Raises:
        DamagedSnapshot: The file is not what was written, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            header, payload = file.read(HEADER), file.read()
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    if header[: len(MAGIC)] != MAGIC:
        raise DamagedCheckpoint(f"{path} is damaged, or was written by another version of dskd")
    if header[len(MAGIC) :] != hashlib.sha256(payload).digest():
        raise DamagedCheckpoint(f"{path} is damaged: its checksum does not fit")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zip and pickle each raise their own
        raise DamagedCheckpoint(f"{path} cannot be loaded: {first_line(error)}") from error
    if not isinstance(state, dict) or any(type(state.get(k)) is not v for k, v in PARTS.items()):
        raise DamagedCheckpoint(f"{path} is damaged: it holds something else than a run's state")
    return state
