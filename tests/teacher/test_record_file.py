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
def store(tmp_path: Path) -> RecordFile:
    """A store that holds the even numbers below 100."""
    store = made(tmp_path / "cache_dir")
    store.open()
    even = np.arange(0, 100, 2)
    store.add(even, record(even))
    return store


def reopened(store: RecordFile) -> RecordFile:
    again = made(store.path)
    again.open()
    return again


def test_what_was_added_is_there_and_nothing_else(store: RecordFile) -> None:
    for one in (store, reopened(store)):
        words, there = one.read(np.arange(100))
        assert (there == (np.arange(100) % 2 == 0)).all()
        assert (words[there] == record(np.arange(0, 100, 2))).all()
        assert one.filled() == 50 / COUNT


def test_what_is_there_stays_as_it_is(store: RecordFile) -> None:
    store.add(np.array([4, 5]), record([7, 7]))
    assert (store.read(np.array([4, 5]))[0] == record([4, 7])).all()


def test_its_size_is_as_predicted_and_an_empty_one_takes_no_room(tmp_path: Path) -> None:
    large = RecordFile(tmp_path / "large", {}, 10**6, 1000)
    large.open()
    files = [large.path / name for name in (RECORDS, CHECKS)]
    assert sum(path.stat().st_size for path in files) == large.size == 10**6 * (2000 + 8)
    assert sum(path.stat().st_blocks * 512 for path in files) < 10**6
    assert large.missing_bytes() > large.size - 10**6


def test_records_of_zeros_are_told_from_none(store: RecordFile) -> None:
    numbers = np.array([300, 301])
    assert not store.read(numbers)[1].any()
    store.add(numbers, np.zeros((2, WORDS), np.int16))
    assert store.read(numbers)[1].all()


@pytest.mark.parametrize("name", [RECORDS, CHECKS])
def test_any_changed_byte_is_noticed_and_mended(
    store: RecordFile, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    size = {RECORDS: 2 * WORDS, CHECKS: 8}[name]
    path = store.path / name
    good = path.read_bytes()
    for byte in range(size):
        bad = bytearray(good)
        bad[4 * size + byte] ^= 0x40
        path.write_bytes(bad)
        again = reopened(store)
        _, there = again.read(np.array([2, 4, 6]))
        assert there.tolist() == [True, False, True]
    assert "some records are damaged" in caplog.text
    again.add(np.array([4]), record([4]))
    words, there = again.read(np.arange(0, 100, 2))
    assert there.all()
    assert (words == record(np.arange(0, 100, 2))).all()


def test_checks_that_reached_the_disk_before_their_records_mean_nothing(store: RecordFile) -> None:
    """As a power cut may leave it: the file system writes pages in any order."""
    path = store.path / RECORDS
    path.write_bytes(bytes(path.stat().st_size))
    assert not reopened(store).read(np.arange(COUNT))[1].any()


def test_a_write_that_is_cut_leaves_what_was_there(
    store: RecordFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RecordFile._write

    def cut(self: RecordFile, name: str, indices: Any, rows: Any) -> None:
        if name == CHECKS:
            raise KeyboardInterrupt
        write(self, name, indices, rows)

    with monkeypatch.context() as patch:
        patch.setattr(RecordFile, "_write", cut)
        with pytest.raises(KeyboardInterrupt):
            store.add(np.array([1, 3]), record([1, 3]))
    again = reopened(store)
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
def test_a_damaged_store_is_refused_and_left_alone(
    store: RecordFile, name: str, harm: Any, message: str
) -> None:
    if harm is cut_short and name == FACTS:
        (store.path / FACTS).write_text('{"of"}')
    else:
        harm(store.path / name)
    before = {path: path.read_bytes() for path in store.path.iterdir()}
    with pytest.raises(InputError, match=message) as refused:
        reopened(store)
    assert f"remove the folder {store.path}" in str(refused.value)
    assert {path: path.read_bytes() for path in store.path.iterdir()} == before


def test_a_store_of_something_else_is_refused(store: RecordFile) -> None:
    with pytest.raises(InputError, match="holds other teacher outputs than its name says"):
        made(store.path, of="letters").open()
    facts = json.loads((store.path / FACTS).read_text())
    assert facts == {"of": "numbers"}


def test_a_disk_that_is_too_small_is_told_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RecordFile(tmp_path / "not" / "there" / "cache_dir", {}, 2**20, 508)  # 1016 bytes and 8
    free = 2**30 + RESERVE
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free - 1))
    with pytest.raises(InputError, match=r"still need 1\.0 GiB of disk and 256\.0 MiB to spare, "):
        store.open()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    store.open()


def test_what_is_there_already_needs_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RecordFile(tmp_path / "cache_dir", {}, 1024, 2048)
    store.open()
    numbers = np.arange(1024)
    store.add(numbers, np.ones((1024, 2048), np.int16))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, RESERVE))
    assert store.missing_bytes() == 0
    again = RecordFile(tmp_path / "cache_dir", {}, 1024, 2048)
    again.open()
    assert again.read(numbers)[1].all()


def test_a_disk_that_fills_up_is_told_with_the_file(store: RecordFile) -> None:
    path = store.path / RECORDS
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left .* bytes were needed, [\d,]+ are") as full:
        store.add(np.array([1]), record([1]))
    assert full.value.errno == errno.ENOSPC
    assert full.value.filename == str(path)
    assert not store.read(np.array([1]))[1].any()


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


def test_a_faster_process_made_it_and_its_store_is_taken(
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
store = RecordFile(path, {"of": "numbers"}, count, words)
store.open()
draw = np.random.default_rng(seed)
for _ in range(60):
    numbers = draw.permutation(count)[:50]
    got, there = store.read(numbers)
    expected = (numbers[:, None] * 31 + np.arange(words)).astype(np.int16)
    assert (got[there] == expected[there]).all()
    store.add(numbers[~there], expected[~there])
    got, there = store.read(numbers)
    assert there.all() and (got == expected).all()
"""


def test_several_processes_fill_one_store(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "cache_dir")]
    writers = [
        subprocess.Popen([*command, str(seed), str(COUNT), str(WORDS)], stderr=subprocess.PIPE)
        for seed in range(2)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
        assert not errors, errors.decode()  # nothing was taken for damaged
    store = made(tmp_path / "cache_dir")
    store.open()
    words, there = store.read(np.arange(COUNT))
    assert there.mean() > 0.99
    assert (words[there] == record(np.arange(COUNT))[there]).all()


@pytest.mark.slow
def test_a_killed_writer_harms_nothing(tmp_path: Path) -> None:
    count, words = 50_000, 256
    endless = WRITER.replace("range(60)", "iter(int, 1)")
    arguments = [str(tmp_path / "cache_dir"), "0", str(count), str(words)]
    writer = subprocess.Popen([sys.executable, "-c", endless, *arguments])
    store = RecordFile(tmp_path / "cache_dir", {"of": "numbers"}, count, words)
    deadline = time.monotonic() + 60
    try:
        while not store.path.is_dir() or store.load() or store.filled() < 0.02:  # type: ignore[func-returns-value]
            assert writer.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        writer.kill()
        writer.wait()
    store.open()
    numbers = np.arange(count)
    expected = (numbers[:, None] * 31 + np.arange(words)).astype(np.int16)
    got, there = store.read(numbers)
    assert 0 < there.sum() < count
    assert (got[there] == expected[there]).all()
    store.add(numbers, expected)
    assert store.read(numbers)[1].all()
