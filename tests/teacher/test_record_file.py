"""Records on disk: there and right, or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dskd.errors import InputError
from dskd.teacher.record_file import CHECKS, FACTS, RECORDS, RESERVE, RecordFile

COUNT, WORDS = 500, 12
Usage = namedtuple("Usage", "total used free")


def record(numbers: Any) -> Any:
    """What a number's record holds."""
    return (np.asarray(numbers)[:, None] * 31 + np.arange(WORDS)).astype(np.int16)


def made(path: Path, **facts: Any) -> RecordFile:
    return RecordFile(path, {"of": "numbers"} | facts, COUNT, WORDS)


@pytest.fixture
def records(tmp_path: Path) -> RecordFile:
    """A record file that holds the even numbers below 100."""
    records = made(tmp_path / "cache_dir")
    records.open()
    even = np.arange(0, 100, 2)
    records.add(even, record(even))
    return records


def reopened(records: RecordFile) -> RecordFile:
    again = made(records.path)
    again.open()
    return again


def test_what_was_added_is_there_and_nothing_else(records: RecordFile) -> None:
    for one in (records, reopened(records)):
        words, there = one.read(np.arange(100))
        assert (there == (np.arange(100) % 2 == 0)).all()
        assert (words[there] == record(np.arange(0, 100, 2))).all()
        assert one.filled() == 50 / COUNT


def test_what_is_there_stays_as_it_is(records: RecordFile) -> None:
    records.add(np.array([4, 5]), record([7, 7]))
    assert (records.read(np.array([4, 5]))[0] == record([4, 7])).all()


def test_its_size_is_as_predicted_and_an_empty_one_takes_no_room(tmp_path: Path) -> None:
    large = RecordFile(tmp_path / "large", {}, 10**6, 1000)
    large.open()
    files = [large.path / name for name in (RECORDS, CHECKS)]
    assert sum(path.stat().st_size for path in files) == large.size == 10**6 * (2000 + 8)
    assert sum(path.stat().st_blocks * 512 for path in files) < 10**6
    assert large.missing_bytes() > large.size - 10**6


def test_records_of_zeros_are_told_from_none(records: RecordFile) -> None:
    numbers = np.array([300, 301])
    assert not records.read(numbers)[1].any()
    records.add(numbers, np.zeros((2, WORDS), np.int16))
    assert records.read(numbers)[1].all()


@pytest.mark.parametrize("name", [RECORDS, CHECKS])
def test_any_changed_byte_is_noticed_and_mended(
    records: RecordFile, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    size = {RECORDS: 2 * WORDS, CHECKS: 8}[name]
    path = records.path / name
    good = path.read_bytes()
    for byte in range(size):
        bad = bytearray(good)
        bad[4 * size + byte] ^= 0x40
        path.write_bytes(bad)
        again = reopened(records)
        _, there = again.read(np.array([2, 4, 6]))
        assert there.tolist() == [True, False, True]
    assert "some records are damaged" in caplog.text
    again.add(np.array([4]), record([4]))
    words, there = again.read(np.arange(0, 100, 2))
    assert there.all()
    assert (words == record(np.arange(0, 100, 2))).all()


def test_checksums_on_the_disk_before_their_records_mean_nothing(
    records: RecordFile,
) -> None:
    """As a power cut may leave it: the file system writes pages in any order."""
    path = records.path / RECORDS
    path.write_bytes(bytes(path.stat().st_size))
    assert not reopened(records).read(np.arange(COUNT))[1].any()


def test_a_write_that_is_cut_leaves_what_was_there(
    records: RecordFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RecordFile._write

    def cut(self: RecordFile, name: str, indices: Any, rows: Any) -> None:
        if name == CHECKS:
            raise KeyboardInterrupt
        write(self, name, indices, rows)

    with monkeypatch.context() as patch:
        patch.setattr(RecordFile, "_write", cut)
        with pytest.raises(KeyboardInterrupt):
            records.add(np.array([1, 3]), record([1, 3]))
    again = reopened(records)
    assert again.read(np.arange(8))[1].tolist() == [True, False] * 4
    again.add(np.array([1, 3]), record([1, 3]))  # the lock is free
    assert again.read(np.arange(8))[1].tolist() == [True, True] * 2 + [True, False] * 2


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def no_json(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        (RECORDS, cut_short, r"records\.bin is damaged: it has 11999 of 12000 bytes"),
        (CHECKS, cut_short, r"checks\.bin is damaged: it has 3999 of 4000 bytes"),
        (RECORDS, Path.unlink, r"records\.bin is damaged: it has 0 of 12000 bytes"),
        (FACTS, cut_short, r"facts\.json is damaged"),
        (FACTS, no_json, r"facts\.json is damaged"),
        (FACTS, Path.unlink, r"facts\.json is missing or is no plain file"),
    ],
)
def test_a_damaged_record_file_is_refused_and_left_alone(
    records: RecordFile, name: str, harm: Any, message: str
) -> None:
    if harm is cut_short and name == FACTS:
        (records.path / FACTS).write_text('{"of"}')
    else:
        harm(records.path / name)
    before = {path: path.read_bytes() for path in records.path.iterdir()}
    with pytest.raises(InputError, match=message) as refused:
        reopened(records)
    assert f"remove the folder {records.path}" in str(refused.value)
    assert {path: path.read_bytes() for path in records.path.iterdir()} == before


def test_a_record_file_of_something_else_is_refused(records: RecordFile) -> None:
    with pytest.raises(InputError, match="holds other teacher outputs than its name says"):
        made(records.path, of="letters").open()
    facts = json.loads((records.path / FACTS).read_text())
    assert facts == {"of": "numbers"}


def test_a_disk_that_is_too_small_is_told_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = RecordFile(tmp_path / "not" / "there" / "cache_dir", {}, 2**20, 508)  # 1024 bytes
    free = 2**30 + RESERVE
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free - 1))
    with pytest.raises(InputError, match=r"still need 1\.0 GiB of disk and 256\.0 MiB to spare, "):
        records.open()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    records.open()


def test_what_is_there_already_needs_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = RecordFile(tmp_path / "cache_dir", {}, 1024, 2048)
    records.open()
    numbers = np.arange(1024)
    records.add(numbers, np.ones((1024, 2048), np.int16))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, RESERVE))
    assert records.missing_bytes() == 0
    again = RecordFile(tmp_path / "cache_dir", {}, 1024, 2048)
    again.open()
    assert again.read(numbers)[1].all()


def test_a_disk_that_fills_up_is_told_with_the_file(records: RecordFile) -> None:
    path = records.path / RECORDS
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left .* bytes were needed, [\d,]+ are") as full:
        records.add(np.array([1]), record([1]))
    assert full.value.errno == errno.ENOSPC
    assert full.value.filename == str(path)
    assert not records.read(np.array([1]))[1].any()


def test_a_folder_that_is_not_ours_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot cache .* choose another folder with teacher"):
        made(tmp_path / "file" / "cache_dir").open()


def test_what_a_killed_process_was_making_goes_after_a_day(tmp_path: Path) -> None:
    for number in range(2):
        part = tmp_path / f".cache_dir.{number:08d}.part"
        part.mkdir()
        (part / RECORDS).write_bytes(b"half")
        yesterday = time.time() - 25 * 3600 * number
        os.utime(part, (yesterday, yesterday))
    made(tmp_path / "cache_dir").open()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cache_dir.00000000.part", "cache_dir"]


def test_a_record_file_that_a_faster_process_made_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = made(tmp_path / "cache_dir"), made(tmp_path / "cache_dir")
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        monkeypatch.undo()
        fast.open()
        fast.add(np.array([9]), record([9]))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    slow.open()
    assert slow.read(np.array([9]))[1].all()
    assert [path.name for path in tmp_path.iterdir()] == ["cache_dir"]


WRITER = """
import sys, numpy as np
from pathlib import Path
from dskd.teacher.record_file import RecordFile
path, seed, count, words = Path(sys.argv[1]), *map(int, sys.argv[2:])
records = RecordFile(path, {"of": "numbers"}, count, words)
records.open()
draw = np.random.default_rng(seed)
for _ in range(60):
    numbers = draw.permutation(count)[:50]
    got, there = records.read(numbers)
    expected = (numbers[:, None] * 31 + np.arange(words)).astype(np.int16)
    assert (got[there] == expected[there]).all()
    records.add(numbers[~there], expected[~there])
    got, there = records.read(numbers)
    assert there.all() and (got == expected).all()
"""


def test_several_processes_fill_one_record_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "cache_dir")]
    writers = [
        subprocess.Popen([*command, str(seed), str(COUNT), str(WORDS)], stderr=subprocess.PIPE)
        for seed in range(2)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
        assert not errors, errors.decode()  # nothing was taken for damaged
    records = made(tmp_path / "cache_dir")
    records.open()
    words, there = records.read(np.arange(COUNT))
    assert there.mean() > 0.99
    assert (words[there] == record(np.arange(COUNT))[there]).all()


@pytest.mark.slow
def test_a_killed_writer_harms_nothing(tmp_path: Path) -> None:
    count, words = 50_000, 256
    endless = WRITER.replace("range(60)", "iter(int, 1)")
    arguments = [str(tmp_path / "cache_dir"), "0", str(count), str(words)]
    writer = subprocess.Popen([sys.executable, "-c", endless, *arguments])
    records = RecordFile(tmp_path / "cache_dir", {"of": "numbers"}, count, words)
    deadline = time.monotonic() + 60
    try:
        while not records.path.is_dir() or records.load() or records.filled() < 0.02:  # type: ignore[func-returns-value]
            assert writer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        writer.kill()
        writer.wait()
    records.open()
    numbers = np.arange(count)
    expected = (numbers[:, None] * 31 + np.arange(words)).astype(np.int16)
    got, there = records.read(numbers)
    assert 0 < there.sum() < count
    assert (got[there] == expected[there]).all()
    records.add(numbers, expected)
    assert records.read(numbers)[1].all()
