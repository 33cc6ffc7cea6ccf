"""The progress bar of a run, in a terminal."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from dskd.config import recipe
from dskd.engine import progress, run
from dskd.errors import InputError
from tests import processes
from tests.trainers import trainer


def test_a_run_shows_its_progress_through_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()

    def terminal(**_: object) -> Console:
        return Console(file=shown, force_terminal=True, width=200)

    monkeypatch.setattr(progress, "Console", terminal)
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    changes = ["data.fraction=0.1", "train.epochs=2", "train.batch_size=64", "method={name: ce}"]
    run.distill(recipe.load("digits", [*changes, "teacher=null", f"out={tmp_path / 'run'}"]))
    assert "epoch 2/2" in shown.getvalue()
    assert "images/s" in shown.getvalue()
    assert re.search(r"\d+ % waiting for data", shown.getvalue())


def test_the_bar_shows_the_state_twice_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    shown = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=shown, force_terminal=True, width=200)
    )
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    made = trainer("ce")
    completed = []
    with progress.epoch_bar(made, "ce") as bar:
        for _ in made.train_epoch():
            bar.step()
            (task,) = bar.progress.tasks
            completed.append(task.completed)
            now += 0.2
        bar.epoch({"test_accuracy": 12.345})
        assert task.fields["accuracy"] == "accuracy 12.35 %"
        assert task.fields["epoch"] == "epoch 1/3"
        assert task.total == 21
    assert completed == [1, 1, 1, 4, 4, 4, 7]


def test_a_run_shows_the_accuracy_of_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[float]()
    monkeypatch.setattr(
        progress.EpochBar, "epoch", lambda _, row: seen.append(row["test_accuracy"])
    )
    changes = ["data.fraction=0.05", "train.epochs=2", "train.batch_size=64", "method={name: ce}"]
    run.distill(recipe.load("digits", [*changes, "teacher=null", f"out={tmp_path / 'run'}"]))
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert seen == [json.loads(line)["test_accuracy"] for line in lines]


def test_an_epoch_that_is_not_evaluated_has_no_accuracy_in_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    changes = ["data.fraction=0.05", "train.epochs=2", "train.evaluate_every=2", "method.name=ce"]
    run.distill(recipe.load("digits", [*changes, "teacher=null", f"out={tmp_path / 'run'}"]))
    first, second = (line for line in caplog.messages if "epoch" in line)
    assert re.search(r"epoch 1/2: loss \d\.\d{3}, [\d,]+ images/s, ", first)
    assert LINE.match(second)


LINE = re.compile(
    r"ce resnet8, epoch (\d)/2: loss \d\.\d{3}, test accuracy \d+\.\d\d %, [\d,]+ images/s, "
    r"\d+ % waiting for data(, \d:\d\d:\d\d left)?"
)
CHANGES = ["data.fraction=0.05", "train.epochs=2", "train.batch_size=64", "method={name: ce}"]


def test_without_a_terminal_each_epoch_is_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    run.distill(recipe.load("digits", [*CHANGES, "teacher=null", f"out={tmp_path / 'run'}"]))
    lines = [LINE.fullmatch(line) for line in caplog.messages if "epoch" in line]
    found = [(line[1], line[2] is not None) for line in lines if line]
    assert found == [("1", True), ("2", False)]
    assert not any("0:00:00 left" in line for line in caplog.messages)  # an epoch is left
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["data_seconds"] <= row["seconds"] for row in rows)


def test_the_time_spent_waiting_for_data_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer("ce")
    batches = type(made.loader).batches

    def slow(*arguments: Any, **options: Any) -> Iterator[Any]:
        for batch in batches(*arguments, **options):
            time.sleep(0.02)
            yield batch

    monkeypatch.setattr(type(made.loader), "batches", slow)
    for _ in made.train_epoch():
        pass
    assert made.step * 0.02 <= made.metrics.data_seconds <= made.seconds
    state = made.state()
    made.end_epoch()
    assert made.metrics.data_seconds == 0.0
    made.restore(state)
    assert made.metrics.data_seconds > 0.0


SCRIPT = """
import sys, dskd
{setup}
arguments = {{"data": {{"name": "digits", "fraction": 0.05}}, "epochs": 2, "out": sys.argv[1]}}
dskd.train("resnet8", train={{"batch_size": 64}}, **arguments{more})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "setup", "count"),
    [
        ("", "", 2),
        (", verbose=0", "", 0),
        ("", "import logging; logging.basicConfig(level='WARNING')", 0),
    ],
)
def test_from_python_each_epoch_is_a_line_on_stderr(
    tmp_path: Path, more: str, setup: str, count: int
) -> None:
    script = SCRIPT.format(more=more, setup=setup)
    done = processes.run(["-c", script, str(tmp_path / "run")])
    assert (done.returncode, done.stdout) == (0, "")
    assert len([one for one in done.stderr.splitlines() if LINE.search(one)]) == count
    if ", verbose=0" in more:
        assert done.stderr == ""


def test_python_calls_leave_logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("dskd")
    monkeypatch.setattr(log, "hasHandlers", lambda: False)
    before = (log.level, list(log.handlers))
    with progress.python_output(1):
        assert not progress.shows_bars()
        assert log.isEnabledFor(logging.INFO)
        assert len(log.handlers) == len(before[1]) + 1
    with progress.python_output(0):
        assert not log.isEnabledFor(logging.INFO)
        assert log.isEnabledFor(logging.WARNING)
    assert (log.level, list(log.handlers)) == before
    assert progress.shows_bars()


@pytest.mark.parametrize("verbose", [2, -1])
def test_other_numbers_are_refused(verbose: int) -> None:
    with (
        pytest.raises(InputError, match=f"verbose: .* got {verbose}"),
        progress.python_output(verbose),
    ):
        pass
