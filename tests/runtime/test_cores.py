"""Threads of a run, and the warning where other work takes the cores."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dskd.config import recipe
from dskd.engine import run
from dskd.runtime import cores
from dskd.runtime.cores import CoreWatch, cpu_threads, times


class Machine:
    """A clock, and the times of a process, that a test sets."""

    def __init__(self) -> None:
        self.now = self.run = self.waited = 0.0

    def watch(self) -> CoreWatch:
        return CoreWatch(lambda: (self.run, self.waited), lambda: self.now)

    def passes(self, seconds: float, waiting: float) -> None:
        """Time passes, in which one thread waits for a share of it and runs otherwise."""
        self.now += seconds
        self.waited += seconds * waiting
        self.run += seconds * (1 - waiting)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(CoreWatch, "_warned", -1e9)
    return Machine()


@pytest.mark.parametrize(
    ("threads", "hint"),
    [
        (1, "stop other programs"),
        (3, "stop other programs, or start the next run with train.threads below 3"),
    ],
)
def test_a_run_that_waits_for_cores_is_told_so(
    machine: Machine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    hint: str,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    watch = machine.watch()
    machine.passes(14, 0.6)
    watch.check()
    assert not caplog.messages, "the window is not over"
    machine.passes(2, 0.6)
    watch.check()
    (line,) = caplog.messages
    assert line.startswith(
        "this run waits for a processor core 60 % of the time, because more work"
    )
    assert line.endswith(f"; {hint}")


def test_a_run_that_gets_its_cores_is_told_nothing(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    watch = machine.watch()
    for _ in range(20):
        machine.passes(20, 0.2)
        watch.check()
    machine.now += 100  # it neither runs nor waits for a core, as when it reads a disk
    watch.check()
    assert not caplog.messages


def test_each_window_counts_alone_and_warnings_are_rare(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    watch = machine.watch()
    machine.passes(1000, 0.0)
    watch.check()
    counts = []
    for _ in range(60):
        machine.passes(20, 0.9)
        watch.check()
        machine.watch().check()
        counts.append(len(caplog.messages))
    assert (counts[0], counts[28], counts[-1]) == (1, 1, 2)


def test_the_watch_passes_every_step_on(machine: Machine) -> None:
    assert list(machine.watch().watching(range(5))) == [0, 1, 2, 3, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone counts the waiting")
def test_the_times_of_all_threads_count() -> None:
    def work() -> None:
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
        done.wait()

    done, before = threading.Event(), times()
    thread = threading.Thread(target=work)
    thread.start()
    while times()[0] - before[0] < 0.1:
        time.sleep(0.01)
    done.set()
    thread.join()


def test_threads_are_set_for_the_run_alone(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    changes = ["data.fraction=0.05", "train.epochs=1", "teacher=null", "method={name: ce}"]
    run.distill(recipe.load("digits", [*changes, "train.threads=3", f"out={tmp_path / 'run'}"]))
    assert json.loads((tmp_path / "run/environment.json").read_text())["threads"] == 3
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        assert torch.get_num_threads() == before


def test_a_run_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "dskd")
    monkeypatch.setattr(CoreWatch, "_warned", -1e9)
    monkeypatch.setattr(cores, "WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(cores, "TOLERATED", -1.0)
    changes = ["data.fraction=0.05", "train.epochs=1", "teacher=null", "method={name: ce}"]
    run.distill(recipe.load("digits", [*changes, f"out={tmp_path / 'run'}"]))
    assert len([line for line in caplog.messages if "waits for a processor core" in line]) == 1
