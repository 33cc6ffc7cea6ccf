"""Checkpoints are written atomically and verified; the last two stay."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import tempfile
from pathlib import Path
from typing import IO, Any, cast

import pytest
import torch

from dskd.errors import Quit
from dskd.runtime.signals import stop_requests
from dskd.storage import atomic, checkpoint
from dskd.storage.checkpoint import DamagedCheckpoint


def state(epoch: int, step: int = 0) -> dict[str, Any]:
    """The state of a run that has weights; its other parts are empty."""
    parts = {name: kind() for name, kind in checkpoint.PARTS.items()}
    trainer = {"weights": torch.full((3,), float(epoch)), "name": "x"}
    return parts | {"epoch": epoch, "step": step, "trainer": trainer}


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path / "new", state(1))
    back = checkpoint.read(path)
    assert back["epoch"] == 1
    assert back["trainer"]["name"] == "x"
    assert torch.equal(back["trainer"]["weights"], torch.ones(3))


def test_the_last_two_checkpoints_stay(tmp_path: Path) -> None:
    before = None
    for epoch, step in ((0, 3), (0, 20), (1, 0), (12, 0)):
        before = checkpoint.write(tmp_path, state(epoch, step), before)
    assert [checkpoint.read(p)["epoch"] for p in checkpoint.in_order(tmp_path)] == [1, 12]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".checkpoint", ".checkpoint"]


def test_checkpoints_are_ordered_by_number_of_any_length(tmp_path: Path) -> None:
    for name in ("epoch100000-step0000000", "epoch99999-step0000001", "epoch99999-step10000000"):
        (tmp_path / f"{name}.checkpoint").write_bytes(b"")
    assert [p.stem[5:] for p in checkpoint.in_order(tmp_path)] == [
        "99999-step0000001",
        "99999-step10000000",
        "100000-step0000000",
    ]


def test_a_damaged_later_checkpoint_is_removed_and_the_previous_one_stays(tmp_path: Path) -> None:
    used = checkpoint.write(tmp_path, state(1))
    damaged = checkpoint.write(tmp_path, state(9), used)
    damaged.write_bytes(b"")
    newest = checkpoint.write(tmp_path, state(2), used)
    assert checkpoint.in_order(tmp_path) == [used, newest]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", ["fsync", "unlink", "replace"])
def test_a_failed_write_reports_the_size_and_keeps_the_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    first = checkpoint.write(tmp_path, state(1))
    second = checkpoint.write(tmp_path, state(2), first)
    size = second.stat().st_size
    place = os if name == "fsync" else Path

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        pattern = os.strerror(number) if name == "unlink" else f"{size:,} bytes were needed"
        with pytest.raises(OSError, match=pattern):
            checkpoint.write(tmp_path, state(3), second)
    assert {first, second} <= set(checkpoint.in_order(tmp_path))
    for path in checkpoint.in_order(tmp_path):
        checkpoint.read(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_during_a_save_is_not_reported_as_an_error_of_torch(
    number: signal.Signals,
) -> None:
    class Signalled:
        def write(self, _: memoryview) -> None:
            signal.raise_signal(number)

    with stop_requests(), pytest.raises(Quit) as quit_:
        checkpoint._write_state(state(2), cast(IO[bytes], Signalled())).raise_failure()
    assert quit_.value.signal == number


def test_a_failure_before_the_first_byte_reports_the_size_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = checkpoint.write(tmp_path, state(1)).stat().st_size

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(OSError, match=f"Read-only file system; {size:,} bytes were needed"):
        checkpoint.write(tmp_path, state(2))


def test_a_disk_that_stores_wrong_bytes_is_detected_before_the_old_checkpoint_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checkpoint.write(tmp_path, state(1))
    second = checkpoint.write(tmp_path, state(2), first)

    def rot(file: IO[bytes]) -> None:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
        file.flush()

    monkeypatch.setattr(atomic, "_drop_page_cache", rot)
    with pytest.raises(OSError, match="the bytes read back differ"):
        checkpoint.write(tmp_path, state(3), second)
    assert sorted(tmp_path.iterdir()) == [first, second]


@pytest.mark.parametrize("at", [*range(checkpoint.HEADER_BYTES), 60, -1])
def test_a_changed_byte_is_detected(tmp_path: Path, at: int) -> None:
    path = checkpoint.write(tmp_path, state(1))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match="is damaged"):
        checkpoint.read(path)


@pytest.mark.parametrize("length", [0, 10, 16, 48, 100])
def test_truncation_is_detected(tmp_path: Path, length: int) -> None:
    path = checkpoint.write(tmp_path, state(1))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "other", [5, None, [1], {}, "text", state(1) | {"epoch": "1"}, state(1) | {"rows": {}}]
)
def test_a_verified_file_without_a_state_is_damaged(tmp_path: Path, other: Any) -> None:
    file, path = io.BytesIO(), tmp_path / "epoch00001-step0000000.checkpoint"
    torch.save(other, file)
    payload = file.getvalue()
    path.write_bytes(checkpoint.MAGIC + hashlib.sha256(payload).digest() + payload)
    with pytest.raises(DamagedCheckpoint, match="does not hold the state of a run"):
        checkpoint.read(path)


def test_a_verified_file_that_cannot_be_loaded_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint"
    payload = b"no archive"
    path.write_bytes(checkpoint.MAGIC + hashlib.sha256(payload).digest() + payload)
    with pytest.raises(DamagedCheckpoint, match="cannot be loaded"):
        checkpoint.read(path)
    with pytest.raises(DamagedCheckpoint, match="cannot be read: Is a directory"):
        checkpoint.read(tmp_path)


class _Call:
    """Pickled as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def test_a_hostile_checkpoint_with_a_valid_checksum_runs_no_code(tmp_path: Path) -> None:
    file, path, mark = io.BytesIO(), tmp_path / "x.checkpoint", tmp_path / "mark"
    torch.save(state(1) | {"best": {"epoch": _Call(os.mkdir, str(mark))}}, file)
    payload = file.getvalue()
    path.write_bytes(checkpoint.MAGIC + hashlib.sha256(payload).digest() + payload)
    with pytest.raises(DamagedCheckpoint, match="cannot be loaded"):
        checkpoint.read(path)
    assert not mark.exists()
    torch.load(io.BytesIO(payload), weights_only=False)
    assert mark.exists(), "the payload must be one that runs"
