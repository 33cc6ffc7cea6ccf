"""When a run writes checkpoints, with clocks that a test sets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dskd.config import recipe
from dskd.engine import run, trainer, training_run
from dskd.engine.training_run import TrainingRun


@pytest.mark.parametrize(
    ("trained", "cost", "expected"),
    [
        (10.0, 0.15, [0, 1, 2, 3]),  # 1.5 % of an epoch
        (10.0, 0.45, [0, 2, 3]),  # too much after one epoch and the preparation
        (10.0, 5.0, [0, 3]),
        (0.0, 0.0, [0, 1, 2, 3]),
        (0.0, 0.01, [0, 3]),
    ],
)
def test_checkpoints_between_the_first_and_the_last_cost_two_percent_of_the_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained: float,
    cost: float,
    expected: list[int],
) -> None:
    now = [1000.0, 1000.0]

    def clock(place: int, seconds: float) -> SimpleNamespace:
        def perf_counter() -> float:
            now[place] += seconds
            return now[place]

        return SimpleNamespace(perf_counter=perf_counter)

    # One step an epoch: it takes as long as the epoch.
    monkeypatch.setattr(trainer, "time", clock(0, trained))
    monkeypatch.setattr(training_run, "time", clock(1, cost))
    saved = list[int]()
    save = TrainingRun._save_checkpoint

    def spied(self: TrainingRun) -> None:
        saved.append(self.trainer.epoch)
        save(self)

    monkeypatch.setattr(TrainingRun, "_save_checkpoint", spied)
    changes = ["data.fraction=0.03", "train.epochs=3", "train.batch_size=64", "method={name: ce}"]
    run.distill(recipe.load("digits", [*changes, "teacher=null", f"out={tmp_path / 'run'}"]))
    assert saved == expected
