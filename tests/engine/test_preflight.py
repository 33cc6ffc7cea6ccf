"""What cannot be trained is refused in one line before anything is written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dskd
from dskd.errors import InputError
from tests.builders import make_dataset


class Unfinished(nn.Module):
    """A classifier that fails in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())
        self.classifier = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Any:
        if self.training:
            raise RuntimeError("a branch that was never written\nand more")
        return self.classifier(self.features(images).mean((2, 3)))


def test_images_of_one_class_are_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1))
    with pytest.raises(InputError, match=r"^only one class \('class0'\) was found, and"):
        dskd.train(net, data=make_dataset(classes=1), out=tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_a_module_that_fails_in_training_mode_only_is_refused_before_any_work(
    tmp_path: Path,
) -> None:
    student = Unfinished().eval()
    before = copy.deepcopy(student.state_dict())
    assert student(torch.zeros(2, 3, 16, 16)).shape == (2, 4)
    with pytest.raises(InputError) as refused:
        dskd.train(student=student, data=make_dataset(), out=tmp_path / "run")
    assert str(refused.value) == (
        "Unfinished cannot be trained on these images: a branch that was never written"
    )
    assert not (tmp_path / "run").exists()
    assert not student.training
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


@pytest.mark.parametrize("method", ["simkd", "norm"])
def test_rounding_is_refused_where_another_module_is_shipped(method: str, tmp_path: Path) -> None:
    """A student of simkd could not be loaded, and the classifier of norm would not be rounded."""
    with pytest.raises(InputError) as refused:
        dskd.distill(
            student="resnet8",
            teacher="resnet14",
            data=make_dataset(),
            method=method,
            train={"int8_rounding": True, "device": "cpu"},
            out=tmp_path / "run",
        )
    assert f"the method {method} ships another module than the student" in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_rounding_is_refused_beside_early_exits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="early exits are not exported in 8 bits; drop it, or"):
        dskd.distill(
            student="resnet8",
            teacher="resnet14",
            data={"name": "digits", "val_fraction": 0.2},
            train={"int8_rounding": True, "exits": True, "device": "cpu"},
            out=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_what_a_method_has_to_say_is_logged_before_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dskd.distill(
        student="resnet8",
        teacher={"name": "resnet14", "epochs": 1},
        data=make_dataset(classes=2),
        method="dist",
        train={"epochs": 1, "batch_size": 8, "device": "cpu"},
        out=tmp_path / "run",
    )
    (line,) = [text for text in caplog.messages if text.startswith("dist: ")]
    assert line == (
        "dist: method.beta has no effect with 2 classes, as it correlates two numbers, whose "
        "correlation is 1 or -1"
    )
