"""After images were added or removed, no accuracy counts images that the run was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dskd
from dskd.deploy import latency
from dskd.errors import InputError
from dskd.report.build import make_report

OTHERS = "test images were not held out when this run was trained"


def write_images(root: Path, count: int, first: int = 0) -> None:
    draw = np.random.default_rng(first)
    for name in ("dark", "light"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            pixels = draw.integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")


def test_runs_of_a_comparison_say_which_images_they_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    root, out = tmp_path / "photos", tmp_path / "compared"
    write_images(root, 10)
    (summary, *_) = dskd.compare_methods(
        student="resnet8",
        teacher={"name": "resnet8", "epochs": 1},
        data={"name": "folder", "root": root},
        methods=["kd"],
        seeds=1,
        train={"epochs": 1, "batch_size": 8},
        out=out,
    )
    run = next(iter(summary.runs.values()))
    assert len((run / "test_images.txt").read_text().splitlines()) == 4
    assert dskd.export(run).measured.accuracy

    write_images(root, 10, first=10)
    dskd.evaluate(run)
    assert OTHERS in caplog.text
    exported = dskd.export(run)
    assert not exported.measured.accuracy
    assert OTHERS in exported.measured.missing["accuracy"]
    assert exported.measured.latency
    card = exported.card.read_text()
    own = json.loads((run / "result.json").read_text())["test_accuracy"]
    assert f"Accuracy of the student on the test images in its run: {own:.2f} %" in card
    assert "accuracy: not measured" in card
    assert OTHERS in make_report([out])[0].read_text()


def test_a_refused_continuation_leaves_the_list(tmp_path: Path) -> None:
    root, out = tmp_path / "photos", tmp_path / "run"
    write_images(root, 5)

    def train(epochs: int, resume: bool) -> None:
        dskd.train(
            "resnet8",
            data={"name": "folder", "root": root},
            train={"epochs": epochs, "batch_size": 8},
            out=out,
            resume=resume,
        )

    train(1, resume=False)
    listed = (out / "test_images.txt").read_text()
    write_images(root, 10, first=5)
    with pytest.raises(InputError, match="images"):
        train(2, resume=True)
    assert (out / "test_images.txt").read_text() == listed
