"""Only one process at a time can lock a folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dskd.errors import InputError
from dskd.storage.lock import LOCK, LOCK_PID, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from dskd.storage.lock import lock_folder
lock = lock_folder(Path(sys.argv[1]), "out=")
print("locked", flush=True)
time.sleep(600)
"""


def test_the_second_process_is_refused_and_a_dead_process_holds_no_lock(
    tmp_path: Path,
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=rf"^process {holder.pid} is at work in .*--out"):
            lock_folder(tmp_path, "--out")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    lock = lock_folder(tmp_path, "--out")
    assert (tmp_path / LOCK_PID).read_text() == f"{os.getpid()}\n"
    lock.release()


def test_lock_files_are_not_written_through_links(tmp_path: Path) -> None:
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("mine")
    for name in (LOCK, LOCK_PID):
        (folder / name).symlink_to(victim)
    lock_folder(folder, "out=").release()
    assert victim.read_text() == "mine"


def test_a_full_disk_is_reported_with_the_bytes_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    line = r"No space left on device; [\d,]+ bytes were needed, [\d,]+ are free"
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(OSError, match=line) as told:
            lock_folder(folder, "out=")
        assert Path(told.value.filename).parent == folder


def test_a_holder_without_a_number_is_another_process(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path, "out=")
    (tmp_path / LOCK_PID).unlink()
    with pytest.raises(InputError, match=r"^another process is at work"):
        lock_folder(tmp_path, "out=")
    lock.release()
