"""Whole runs on streamed images."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import dskd
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data.file_split import FileSplit
from dskd.deploy.predict import predict
from dskd.engine import run
from dskd.engine.build_data import load_data
from dskd.errors import InputError, Stopped
from dskd.storage.weights import read_metadata, read_weights
from tests.builders import stop_at
from tests.data.file_writers import write_folder

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "root", per_class=8, val_per_class=3, side=20)


def plan(root: Path, out: Path, *overrides: str) -> Recipe:
    return recipe.load_by_labels(
        "digits",
        [
            f"data={{name: folder, root: {root}, size: 16, loading: stream, workers: 0}}",
            "data.augment=strong",
            "train.epochs=2",
            "train.batch_size=6",
            "train.device=cpu",
            f"out={out}",
            *overrides,
        ],
    )


def assert_same_student(one: Path, other: Path) -> None:
    first, second = (read_weights(folder / "student.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_resumes_in_mid_epoch_with_another_number_of_workers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run.train(plan(root, whole))
    with monkeypatch.context() as patch:
        stop_at(patch, epoch=0, step=1)
        with pytest.raises(Stopped):
            run.train(plan(root, stopped, "data.workers=1"))
    run.train(plan(root, stopped, "data.workers=2"), resume=True)
    assert_same_student(whole, stopped)


def test_a_plain_streamed_run_trains_the_student_of_one_in_memory(
    root: Path, tmp_path: Path
) -> None:
    students = []
    for loading in ("memory", "stream"):
        out = tmp_path / loading
        run.train(
            plan(root, out, "data.augment=cifar", f"data.loading={loading}", "data.workers=null")
        )
        students.append(out)
    assert_same_student(*students)


def test_other_files_do_not_resume_a_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, epoch=0, step=1)
        with pytest.raises(Stopped):
            run.train(plan(root, out))
    (root / "train" / "cat" / "0.png").touch()
    with pytest.raises(InputError, match="other images"):
        run.train(plan(root, out), resume=True)


def test_images_in_memory_do_not_become_streamed_ones(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, epoch=0, step=1)
        with pytest.raises(Stopped):
            run.train(plan(root, out, "data.loading=auto"))
    said = "random crops are cut from the centre of the images at 16x16, as they are in memory"
    assert said in caplog.text
    caplog.clear()
    with pytest.raises(InputError, match=r"other images or another data\.loading \(memory or"):
        run.train(plan(root, out, "data.loading=stream"), resume=True)
    assert said not in caplog.text
    run.train(plan(root, out, "data.loading=memory"), resume=True)


def test_students_are_evaluated_and_predict_as_the_run_read_its_images(
    root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = run.train(plan(root, out, "data.crop_pct=0.8", "data.interpolation=bilinear"))
    assert dskd.evaluate(out).accuracy == pytest.approx(result.test_accuracy)
    assert read_metadata(out / "student.safetensors")["pixels"] == {
        "value_range": None,
        "crop_pct": 0.8,
        "interpolation": "bilinear",
    }
    deployed = dskd.load_deployed(out)
    data = load_data(plan(root, out, "data.crop_pct=0.8", "data.interpolation=bilinear").data)
    test = data.test
    assert isinstance(test, FileSplit)
    found = predict(deployed, [root / name for name in test.names])
    logits = deployed.model(test.images).logits
    torch.testing.assert_close(found, logits.softmax(1))
