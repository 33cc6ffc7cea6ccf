"""Snapshots: whole or not there, verified, the last two kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dskd import snapshot
from dskd.snapshot import DamagedSnapshot


def state(epoch: int, step: int = 0) -> dict[str, Any]:
    return {"epoch": epoch, "step": step, "weights": torch.full((3,), float(epoch)), "name": "x"}


def test_a_snapshot_comes_back_as_it_was(tmp_path: Path) -> None:
    path = snapshot.write(tmp_path / "new", state(1))
    back = snapshot.read(path)
    assert back["epoch"] == 1
    assert back["name"] == "x"
    assert torch.equal(back["weights"], torch.ones(3))


def test_the_last_two_are_kept_in_order(tmp_path: Path) -> None:
    for epoch, step in ((0, 3), (0, 20), (1, 0), (12, 0)):
        snapshot.write(tmp_path, state(epoch, step))
    assert [snapshot.read(p)["epoch"] for p in snapshot.in_order(tmp_path)] == [1, 12]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".snapshot", ".snapshot"]


@pytest.mark.parametrize("at", [0, 5, 16, 30, 48, 60, -1])
def test_every_changed_byte_is_noticed(tmp_path: Path, at: int) -> None:
    path = snapshot.write(tmp_path, state(1))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedSnapshot, match="is damaged"):
        snapshot.read(path)


@pytest.mark.parametrize("length", [0, 10, 16, 48, 100])
def test_truncation_is_noticed(tmp_path: Path, length: int) -> None:
    path = snapshot.write(tmp_path, state(1))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedSnapshot):
        snapshot.read(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    snapshot.replace_file(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        snapshot.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
