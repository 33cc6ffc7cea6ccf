"""Surroundings: machines without a home folder or a name for the user, threads, other folders."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dskd
from dskd.compare.runner import run_grid
from dskd.engine.trainer import Trainer
from dskd.errors import InputError
from tests import processes
from tests.compare.small_comparison import Silent, small

NOBODY = """
import os, pwd, sys
def unknown(*_):
    raise KeyError("uid not found")
pwd.getpwuid = pwd.getpwnam = unknown
from dskd.cli.commands import main
main(sys.argv[1:])
"""
"""The command of a user whose number has no name, as in many containers."""
GONE = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "TERM", "XDG_CACHE_HOME", "DSKD_CACHE")
RECIPE = """
data: {name: folder, size: 16, root: images}
student: {name: resnet8}
method: {name: ce}
train: {epochs: 1, batch_size: 4, device: cpu}
"""


def _train(seed: int, out: Path) -> bytes | str:
    try:
        dskd.train(
            student="resnet8",
            data={"name": "digits", "fraction": 0.1},
            train={"epochs": 1, "device": "cpu"},
            seed=seed,
            out=out,
        )
    except InputError as error:
        return str(error)
    return (out / "student.safetensors").read_bytes()


def _nobody(
    folder: Path, *arguments: str, forks: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """A command of that user; with ``forks``, in a process that has imported torch before."""
    environment = {key: value for key, value in os.environ.items() if key not in GONE} | more
    environment |= {"LC_ALL": "C"}
    if forks:
        return processes.run(["-c", NOBODY, *arguments], folder=folder, environment=environment)
    return subprocess.run(
        [sys.executable, "-c", NOBODY, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_run_in_a_thread_gives_the_student_that_it_gives_alone(tmp_path: Path) -> None:
    alone = [_train(seed, tmp_path / f"alone{seed}") for seed in (0, 1)]
    with ThreadPoolExecutor(1) as pool:
        one_after_the_other = list(
            pool.map(_train, (0, 1), (tmp_path / "thread0", tmp_path / "thread1"))
        )
    assert one_after_the_other == alone
    assert alone[0] != alone[1]


@pytest.mark.slow
def test_a_second_run_at_the_same_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's generators are the process's: seed 0 was not seed 0."""
    begun, finish = threading.Event(), threading.Event()
    train_epoch = Trainer.train_epoch

    def waits(self: Trainer) -> Any:
        begun.set()
        assert finish.wait(60)
        yield from train_epoch(self)

    alone = _train(0, tmp_path / "alone")
    monkeypatch.setattr(Trainer, "train_epoch", waits)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_train, 0, tmp_path / "first")
        assert begun.wait(60)
        refused = _train(1, tmp_path / "second")
        with pytest.raises(InputError, match="another run is going on in this process"):
            run_grid(small(tmp_path / "grid", "ce", 1), Silent())
        finish.set()
        assert first.result(60) == alone
    assert isinstance(refused, str)
    assert "another run is going on in this process" in refused
    assert "process of its own" in refused
    assert not (tmp_path / "second").exists()
    assert isinstance(_train(1, tmp_path / "second"), bytes)  # one after the other


def test_a_run_that_fails_lets_the_next_one_begin(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert isinstance(_train(0, tmp_path / "file"), str)
    assert isinstance(_train(0, tmp_path / "run"), bytes)


@pytest.mark.slow(seconds=5)
def test_a_user_without_name_or_home_is_told_what_to_set(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in "ab":
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = np.full((16, 16, 3), 50 + index, np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    (tmp_path / "r.yaml").write_text(RECIPE)
    refused = _nobody(tmp_path, "train", "r.yaml", "out=run", forks=True)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "without a home folder; set the environment variable DSKD_CACHE to a folder" in line
    assert not (tmp_path / "run").exists()
    tilde = _nobody(tmp_path, "train", "r.yaml", "out=~/run", forks=True)
    assert tilde.returncode == 2
    assert "out: that user has no home folder" in tilde.stderr
    followed = _nobody(
        tmp_path, "train", "r.yaml", "out=run \u00e9", DSKD_CACHE=str(tmp_path / "c")
    )
    assert followed.returncode == 0, followed.stderr
    assert (tmp_path / "run \u00e9/student.safetensors").is_file()


@pytest.mark.slow(seconds=7)
def test_a_home_that_cannot_be_written_to_costs_the_cache_alone(tmp_path: Path) -> None:
    teacher = ["teacher.name=resnet8", "teacher.epochs=1", "teacher.cache=logits", "method.name=kd"]
    tiny = ["data.fraction=0.1", "train.epochs=1", "train.device=cpu"]
    for home, forks in (("/proc", False), ("/dev/null", True)):
        words = ("train", "digits", *tiny, f"out=run{home[1:4]}")
        plain = _nobody(tmp_path, *words, forks=forks, HOME=home)
        assert plain.returncode == 0, plain.stderr
    refused = _nobody(tmp_path, "distill", "digits", *tiny, *teacher, "out=cached", forks=True)
    assert refused.returncode == 2
    assert "DSKD_CACHE" in refused.stderr
    assert not (tmp_path / "cached").exists(), "a teacher was trained first"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that nobody can write to")
def test_a_current_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dskd.cli.commands import run_command

    monkeypatch.chdir("/proc")
    _train(0, tmp_path / "run")
    for command, fix in (
        (["train", "digits"], "choose another folder with --out FOLDER"),
        (["compare", "digits"], "choose another folder with --out FOLDER"),
        (["demo"], "choose another folder with --out FOLDER"),
        (
            ["report", str(tmp_path / "run"), "--out", "report.html"],
            "choose another folder with --out PAGE.html",
        ),
    ):
        assert run_command(command) == 2
        said = capsys.readouterr().err.splitlines()
        assert "cannot write to /proc" in said[-1]
        assert fix in said[-1]
        assert len(said) == 1, "it worked first"
