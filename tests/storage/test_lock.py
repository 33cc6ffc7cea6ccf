"""One owner of a folder at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dskd.errors import InputError
from dskd.storage.lock import LOCK, OWNER, take

HOLD = "import sys, time, pathlib, dskd.storage.lock as o; l = o.take(pathlib.Path(sys.argv[1]), 'out=')"


def test_the_second_is_told_the_first_one_s_number_and_a_dead_one_holds_nothing(
    tmp_path: Path,
) -> None:
    code = f"{HOLD}; print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"^process {holder.pid} is at work in .*--out"):
            take(tmp_path, "--out")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    lock = take(tmp_path, "--out")
    assert (tmp_path / OWNER).read_text() == f"{os.getpid()}\n"
    lock.release()


def test_links_in_a_stranger_s_folder_are_not_written_through(tmp_path: Path) -> None:
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("mine")
    for name in (LOCK, OWNER):
        (folder / name).symlink_to(victim)
    take(folder, "out=").release()
    assert victim.read_text() == "mine"


def test_a_full_disk_is_told_with_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    line = r"No space left on device; [\d,]+ bytes were needed, [\d,]+ are free"
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(OSError, match=line) as told:
            take(folder, "out=")
        assert Path(told.value.filename).parent == folder


def test_a_holder_that_has_not_said_its_number_is_another_process(tmp_path: Path) -> None:
    lock = take(tmp_path, "out=")
    (tmp_path / OWNER).unlink()
    with pytest.raises(InputError, match=r"^another process is at work"):
        take(tmp_path, "out=")
    lock.release()
