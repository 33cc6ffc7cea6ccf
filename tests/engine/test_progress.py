"""The progress bar of a run, in a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dskd.config import recipe
from dskd.engine import progress, run
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
        bar.epoch(12.345)
        assert task.fields["accuracy"] == "accuracy 12.35 %"
        assert task.fields["epoch"] == "epoch 1/3"
        assert task.total == 21
    assert completed == [1, 1, 1, 4, 4, 4, 7]


def test_a_run_shows_the_accuracy_of_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[float]()
    monkeypatch.setattr(progress.EpochBar, "epoch", lambda _, accuracy: seen.append(accuracy))
    changes = ["data.fraction=0.05", "train.epochs=2", "train.batch_size=64", "method={name: ce}"]
    run.distill(recipe.load("digits", [*changes, "teacher=null", f"out={tmp_path / 'run'}"]))
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert seen == [json.loads(line)["test_accuracy"] for line in lines]
