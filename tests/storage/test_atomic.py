"""Writes are atomic, and a failed write reports the bytes that it needed."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import IO, Any

import pytest

from dskd.errors import InputError
from dskd.storage.atomic import (
    check_writable,
    is_part,
    make_folder,
    remove_folder,
    remove_parts,
    replace_file,
    replacing,
    sweep,
)


def failing(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize(
    ("place", "name"),
    [(os, "fsync"), (Path, "replace"), (Path, "chmod"), ("tempfile", "mkstemp")],
)
def test_a_failed_write_leaves_the_old_file_and_reports_the_bytes_it_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, number: int
) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    with monkeypatch.context() as patch:
        if isinstance(place, str):
            patch.setattr(f"{place}.{name}", failing(number))
        else:
            patch.setattr(place, name, failing(number))
        with pytest.raises(OSError, match=r"; 3 bytes were needed, [\d,]+ are free") as told:
            replace_file(path, b"new")
    assert told.value.errno == number
    assert told.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_fails_verification_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    seen = []

    def refuse(file: IO[bytes]) -> None:
        seen.append(file.read())
        raise OSError(errno.EIO, "read back otherwise")

    with pytest.raises(OSError, match="otherwise"), replacing(path, refuse) as file:
        file.write(b"new")
    assert seen == [b"new"]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_during_a_write_leaves_no_file(tmp_path: Path) -> None:
    def stop(_: IO[bytes]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file", stop) as file:
        file.write(b"half")
    assert not list(tmp_path.iterdir())


def test_checking_a_writable_folder_leaves_no_file(tmp_path: Path) -> None:
    check_writable(tmp_path / "not/yet/there", "out=")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_folder_that_cannot_be_written_is_refused_with_the_bytes_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    reason = os.strerror(number)
    with pytest.raises(InputError, match=rf"{reason}, 4,096 bytes were needed; .*--out"):
        check_writable(tmp_path / "run", "--out")
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is a file"):
        check_writable(tmp_path / "file/run", "out=")


def test_a_killed_removal_is_completed_by_the_next_one(tmp_path: Path) -> None:
    make_folder(tmp_path / "a/b")
    (tmp_path / ".a.part").mkdir()
    (tmp_path / ".a.part/half").write_text("gone")
    remove_folder(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    remove_folder(tmp_path / "a")  # nothing is there


def test_removing_a_link_keeps_its_target(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    remove_folder(tmp_path / "link")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_only_temporary_files_of_the_given_names_are_removed(tmp_path: Path) -> None:
    others = (".film.part", ".film.x0_abcde.part", ".x.torrent.part", "x.x0_abcde.part", ".x")
    for name in (".x.x0_abcde.part", ".3.log.x0_abcde.part", ".probe.x0_abcde.part", *others):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.part").mkdir()
    (tmp_path / ".y.part").symlink_to(tmp_path.parent)
    remove_parts(tmp_path, ["x", "y", "*.log", "folder"])
    assert {p.name for p in tmp_path.iterdir()} == set(others)
    remove_parts(tmp_path / "missing", ["x"])
    assert tmp_path.parent.is_dir()


def test_temporary_files_of_writes_and_removals_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replacing(tmp_path / "file"):
        assert [is_part(p.name, ["file"]) for p in tmp_path.iterdir()] == [True]
    make_folder(tmp_path / "folder")
    left: list[str] = []
    monkeypatch.setattr("shutil.rmtree", lambda path: left.append(path.name))
    remove_folder(tmp_path / "folder")
    assert [is_part(name, ["folder"]) for name in left] == [True]


def test_sweep_removes_only_old_temporary_files(tmp_path: Path) -> None:
    new, old = tmp_path / ".x.00000000.part", tmp_path / ".x.11111111.part"
    new.write_text("")
    old.mkdir()
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    sweep(tmp_path, "x")
    assert list(tmp_path.iterdir()) == [new]
    sweep(tmp_path / "missing", "x")


def test_the_bytes_that_are_needed_are_written_to_see_that_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))
    check_writable(tmp_path / "run", "--out")
    assert sizes == [4096]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_no_write_leaves_a_file_open(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"1")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        replace_file(tmp_path / "a", b"2")
        with replacing(tmp_path / "b") as file:
            file.write(b"3")
        check_writable(tmp_path, "--out")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
