"""Metrics for TensorBoard are on the disk when they are added, or the failure is reported."""

from __future__ import annotations

import errno
import os
import struct
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from dskd.storage.tensorboard import TensorBoardLog


def events(path: Path) -> list[Event]:
    """Reads the records of a file: length, its checksum, the bytes, their checksum."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_every_value_is_on_the_disk_once_it_was_added(tmp_path: Path) -> None:
    tensorboard = TensorBoardLog(tmp_path / "tensorboard", 3)
    tensorboard.add(4, {"test_accuracy": 50.0, "lr": 0.5})
    start, purge, *rest = events(tensorboard.path)
    assert start.file_version == "brain.Event:2"
    assert purge.step == 4
    assert [(e.step, e.summary.value[0].tag) for e in rest] == [(4, "test_accuracy"), (4, "lr")]
    assert rest[0].summary.value[0].simple_value == 50.0
    tensorboard.close()


def test_a_clock_that_jumps_by_ten_years_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorboard, now = TensorBoardLog(tmp_path, 0), time.time()
    for epoch, years in enumerate((10, -10, -60), start=1):
        monkeypatch.setattr(time, "time", lambda years=years: now + years * 365 * 86400)
        tensorboard.add(epoch, {"lr": 1.0})
    assert [event.step for event in events(tensorboard.path)[2:]] == [1, 2, 3]
    tensorboard.close()


def test_the_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/events.out.tfevents.00001").symlink_to(victim)
    TensorBoardLog(tmp_path / "tensorboard", 1).close()
    assert victim.read_text() == "mine"


def test_a_full_disk_is_reported_at_once(tmp_path: Path) -> None:
    tensorboard = TensorBoardLog(tmp_path, 0)
    full = os.open("/dev/full", os.O_WRONLY) if Path("/dev/full").exists() else None
    if full is None:
        pytest.skip("this system has no device that is always full")
    os.dup2(full, tensorboard._file._writer.fileno())
    os.close(full)
    with pytest.raises(OSError, match=r"\d+ bytes were needed") as told:
        tensorboard.add(1, {"lr": 1.0})
    assert told.value.errno == errno.ENOSPC
    tensorboard.close()
