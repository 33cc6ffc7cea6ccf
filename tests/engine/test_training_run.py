"""When a run writes checkpoints, with clocks that a test sets, and how often it evaluates."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dskd
from dskd.config import recipe
from dskd.engine import average, evaluate, image_task, run, trainer, training_run
from dskd.engine.training_run import TrainingRun
from dskd.errors import Stopped
from dskd.models.zoo import build
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import BEST
from tests.builders import make_dataset, stop_at, trusted


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


def test_the_best_student_is_of_the_epoch_that_the_result_names_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Elsewhere, the epoch that was best before the kill is not the best any more."""
    monkeypatch.setattr(training_run, "CHECKPOINT_SHARE", -1.0)  # at the end alone
    caplog.set_level("INFO", "dskd")
    written, scores = list[int](), {1: 50.0, 2: 80.0, 3: 60.0, 4: 40.0}
    write, rows = TrainingRun.write_student, training_run._epoch_row

    def spied(self: TrainingRun, name: str, *others: Any) -> None:
        if name == BEST:
            written.append(self.trainer.epoch)
        write(self, name, *others)

    def scored(self: TrainingRun, tested: Any) -> dict[str, Any]:
        row = rows(self, tested)
        return row | {"test_accuracy": scores[row["epoch"]]}

    monkeypatch.setattr(TrainingRun, "write_student", spied)
    monkeypatch.setattr(training_run, "_epoch_row", scored)
    out = tmp_path / "run"
    changes = ["data.fraction=0.03", "train.epochs=4", "train.batch_size=64", "method={name: ce}"]
    own = recipe.load("digits", [*changes, "teacher=null", f"out={out}"])
    with monkeypatch.context() as patch:
        stop_at(patch, 0, 0)  # a checkpoint after the first epoch
        with pytest.raises(Stopped):
            run.distill(own)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_keep_best", killed_after(TrainingRun._keep_best, 2))
        with pytest.raises(KeyboardInterrupt):
            run.distill(own, resume=True)
    assert written == [1, 2]
    scores[2] = 45.0
    result = run.distill(own, resume=True)
    assert result.best_epoch == written[-1] == 3
    assert "student_best.safetensors may be of an epoch that is trained again" in caplog.text


def killed_after(keep_best: Any, epoch: int) -> Any:
    def kill(self: TrainingRun, row: dict[str, float]) -> None:
        keep_best(self, row)
        if self.trainer.epoch == epoch:
            raise KeyboardInterrupt

    return kill


@pytest.mark.parametrize(("every", "evaluated"), [(2, [2, 4, 5]), (3, [3, 5]), (9, [5])])
def test_some_epochs_are_evaluated_and_always_the_last(
    tmp_path: Path, every: int, evaluated: list[int]
) -> None:
    options: dict[str, Any] = {"data": make_dataset(), "method": "ce", "verbose": 0}
    train = {"epochs": 5, "batch_size": 16}
    whole = dskd.distill("resnet8", **options, train=train, out=tmp_path / "whole")
    some = dskd.distill(
        "resnet8", **options, train=train | {"evaluate_every": every}, out=tmp_path / "some"
    )
    assert some.test_accuracy == whole.test_accuracy
    for key, weight in whole.student.state_dict().items():
        assert torch.equal(some.student.state_dict()[key], weight), key
    rows, all_rows = RunDirectory(tmp_path / "some").rows(), RunDirectory(tmp_path / "whole").rows()
    assert [row["epoch"] for row in rows if "test_accuracy" in row] == evaluated
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in all_rows]
    accuracies = {epoch: all_rows[epoch - 1]["test_accuracy"] for epoch in evaluated}
    assert some.best_epoch == max(evaluated, key=lambda epoch: accuracies[epoch])
    assert some.best_test_accuracy == accuracies[some.best_epoch]


def test_nothing_is_evaluated_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = list[int]()
    evaluate_accuracy = evaluate.evaluate_accuracy

    def counted(module: Any, logits: Any, loader: Any) -> Any:
        splits.append(len(loader))
        return evaluate_accuracy(module, logits, loader)

    for place in (image_task, average):
        monkeypatch.setattr(place, "evaluate_accuracy", counted)
    out = tmp_path / "run"
    options: dict[str, Any] = {
        "teacher": trusted(build("resnet8", num_classes=4)),
        "data": make_dataset(),
        "method": "kd",
        "train": {"epochs": 2, "batch_size": 16, "ema": 0.5},
        "out": out,
    }
    result = dskd.distill("resnet8", **options)
    assert splits == [20] * 4  # the student and its average, in two epochs
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for key in ("test_accuracy", "ema_test_accuracy"):
        assert getattr(result, key) == rows[-1][key]
    numbers = json.loads((out / "result.json").read_text())
    (out / "result.json").unlink()  # as if it was killed before it was written
    again = dskd.distill("resnet8", **options, resume=True)
    written = json.loads((out / "result.json").read_text())
    assert {**written, "checkpoint_seconds": 0} == {**numbers, "checkpoint_seconds": 0}
    assert again.agreement == result.agreement
