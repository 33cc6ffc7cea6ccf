"""The study of early exits: its runs, and its page from their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evidence.early_exits import at_cost, figure, main, page

from dskd.deploy import latency
from tests.data.file_writers import write_folder


def row(cost: float, accuracy: float, max_loss: float | None = None) -> dict[str, Any]:
    return {
        "max_loss": max_loss,
        "accuracy": accuracy,
        "multiply_adds": cost,
        "latency": cost / 10,
        "shares": [40.0, 60.0],
    }


def facts() -> dict[str, Any]:
    environment = {"packages": {}, "processor": "", "device": "cpu", "threads": 1, "python": "3"}
    curve = [(40e6, 80.0), (30e6, 79.0), (20e6, 70.0)]
    exits = [
        {
            "images": 100,
            "multiply_adds": 40_000_000,
            "latency": 4e6,
            "accuracies": [60.0, 80.0 + seed],
            "rows": [row(30e6, 79.0 + seed, 1.0)],
            "curve": [row(cost, accuracy + seed) for cost, accuracy in curve],
        }
        for seed in range(3)
    ]
    return {
        "study": "early-exits",
        "command": "make",
        "changes": [],
        "commit": "0",
        "date": "",
        "environment": environment,
        "teacher": 85.0,
        "val_images": 50,
        "exits": exits,
        "smaller": {
            "resnet14": {"accuracies": [72.0, 73.1, 74.0], "multiply_adds": 25_000_000},
            "resnet8": {"accuracies": [60.0, 61.0, 62.0], "multiply_adds": 10_000_000},
        },
    }


def test_accuracy_at_a_cost_lies_between_the_nearest_policies() -> None:
    curve = facts()["exits"][0]["curve"]
    assert at_cost(curve, 25e6) == 74.5
    assert at_cost(curve, 40e6) == 80.0
    assert at_cost(curve, 20e6) == 70.0
    assert at_cost(curve, 10e6) is None


def test_the_page_compares_students_of_the_same_cost() -> None:
    text = page(facts())
    assert "has 75.5 ± 2.5 %, and resnet14 73.0 ± 2.5 %: a difference of +2.5 ± 0.1" in text
    assert "points, significant (p < 0.001)." in text
    assert "At no seed do the exits make resnet20 as cheap as resnet8 (10.0 M multiply" in text
    assert "adds): the lowest cost is 20.0 M." in text
    assert "| resnet20 with exits | 1 | 80.0 ± 2.5 | +1.0 | 30.0 | 0.75 | 40.0 |" in text
    assert figure(facts()) == figure(facts())


def test_the_page_counts_the_seeds_at_which_exits_are_as_cheap() -> None:
    found = facts()
    found["exits"][1]["curve"][-1]["multiply_adds"] = 9_000_000
    text = page(found)
    assert "make resnet20 as cheap as resnet8 (10.0 M multiply-adds) at only 1 of 3 seeds." in text


@pytest.mark.slow(seconds=8)
def test_the_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr("evidence.early_exits.SMALLER", ("resnet8",))
    monkeypatch.setattr("evidence.early_exits.STUDENT", "resnet14")
    monkeypatch.setattr("evidence.early_exits.TEACHER", "resnet8")
    photos = write_folder(tmp_path / "photos", per_class=12, side=16)
    monkeypatch.setattr("evidence.early_exits.prepare", lambda *_: photos)
    small = ["data.size=16", "train.epochs=1", "teacher.views=1"]
    for _ in range(2):
        main([str(photos), str(tmp_path), *small, "--seeds=1", f"--results={tmp_path / 'pages'}"])
        result = tmp_path / "early-exits/resnet14-seed0/result.json"
        stamp = result.stat().st_mtime_ns
    assert result.stat().st_mtime_ns == stamp
    names = {path.name for path in (tmp_path / "pages").iterdir()}
    assert names == {"early-exits.json", "early-exits.svg", "early-exits.md"}
