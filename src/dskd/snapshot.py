"""Snapshots: files that are whole or not there, and are verified before they are trusted."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

MAGIC = b"DSKD snapshot 1\n"
KEPT = 2
_HEADER = len(MAGIC) + hashlib.sha256().digest_size


class DamagedSnapshot(ValueError):
    """A snapshot is not what was written."""


def replace_file(path: Path, data: bytes) -> None:
    """Writes ``data`` so that ``path`` holds either all of it or what it held before.

    A temporary file in the same folder is flushed to disk and renamed; then the folder is flushed.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write(folder: Path, state: dict[str, Any]) -> Path:
    """Writes a snapshot named by ``state["epoch"]`` and ``state["step"]``; keeps the last two.

    An older one goes only after the new one was read back and verified.

    Args:
        folder: Made where it is missing.
        state: Tensors, numbers, strings and plain containers of these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    path = folder / f"epoch{state['epoch']:05d}-step{state['step']:07d}.snapshot"
    replace_file(path, MAGIC + hashlib.sha256(payload).digest() + payload)
    _verified(path)
    for older in in_order(folder)[:-KEPT]:
        older.unlink()
    return path


def in_order(folder: Path) -> list[Path]:
    """The snapshots in a folder, oldest first; none where there is no folder."""
    return sorted(folder.glob("*.snapshot"))


def read(path: Path) -> dict[str, Any]:
    """A verified snapshot's state, with its tensors on the CPU.

    Raises:
        DamagedSnapshot: The file is not what was written.
    """
    state: dict[str, Any] = torch.load(
        io.BytesIO(_verified(path)), map_location="cpu", weights_only=True
    )
    return state


def _verified(path: Path) -> bytes:
    data = path.read_bytes()
    payload = data[_HEADER:]
    if (
        data[: len(MAGIC)] != MAGIC
        or data[len(MAGIC) : _HEADER] != hashlib.sha256(payload).digest()
    ):
        raise DamagedSnapshot(f"{path} is damaged: its checksum does not fit")
    return payload
