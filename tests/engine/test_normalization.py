"""What a model is fed: its own statistics, those of its file, or those of the data."""

from __future__ import annotations

import ast
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dskd
from dskd.config.schema import ModelSettings, TeacherSettings
from dskd.data.loader import DataLoaders
from dskd.engine.build_model import build_model
from dskd.engine.teacher_accuracy import evaluate_teacher
from dskd.errors import InputError, on_command_line
from dskd.models.staged_model import StagedModel
from dskd.settings import validate
from dskd.teacher.frozen import FrozenTeacher
from tests.builders import make_dataset

CLASSES = 8
DATA = make_dataset(classes=CLASSES, per_class=4)
STATISTICS: dict[str, tuple[Any, Any]] = {
    "pixels from 0 to 1": ([0.0] * 3, [1.0] * 3),
    "pixels from -1 to 1": ([0.5] * 3, [0.5] * 3),
    "ImageNet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


class Brightness(nn.Module):
    """Knows the brightness of each class of `make_dataset`, on the scale that it was made for."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.centers: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.register_buffer("centers", torch.linspace(40, 215, CLASSES) / 255)

    def forward(self, images: Tensor) -> Tensor:
        brightness = (images * self.std + self.mean).mean((1, 2, 3))
        return -(brightness[:, None] - self.centers).square()


def evaluated(given: nn.Module | None = None, **settings: Any) -> float:
    """The accuracy of a teacher at the start of a run, in percent."""
    checked = validate(TeacherSettings, {"name": "<Brightness>", **settings})
    teacher = FrozenTeacher(build_model(checked, DATA, 0, given, allow_code=True))
    evaluate_teacher(teacher, DataLoaders(DATA, torch.device("cpu")), checked, refuse=False)
    assert teacher.test_predictions is not None
    return 100 * (teacher.test_predictions == DATA.test.labels).double().mean().item()


@pytest.mark.parametrize("pixels", STATISTICS)
def test_a_teacher_that_knows_other_pixels_is_warned_about_with_the_fix(
    pixels: str, caplog: pytest.LogCaptureFixture
) -> None:
    mean, std = STATISTICS[pixels]
    assert evaluated(Brightness(mean, std)) < 70
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"it was likely trained on {'the mean and std of ' * (pixels == 'ImageNet')}" in warning
    _, _, fix = warning.partition('give teacher={"module": net, ')
    given = ast.literal_eval(f"{{{fix}")
    caplog.clear()
    assert evaluated(Brightness(mean, std), **given) == 100
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_a_teacher_with_the_statistics_of_the_data_is_not_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert evaluated(Brightness([0.5] * 3, [0.25] * 3)) == 100
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def unknown_weights(num_classes: int, in_channels: int) -> nn.Module:
    return Brightness([0.5] * 3, [0.25] * 3)


def test_a_file_of_another_program_is_warned_about_with_the_settings_of_the_command_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(Brightness([0.0] * 3, [1.0] * 3).state_dict(), path)
    with on_command_line():
        evaluated(name=f"{__name__}:unknown_weights", checkpoint=path)
    assert "pixels from 0 to 1" in caplog.text
    assert caplog.text.rstrip().endswith("give teacher.mean=0 teacher.std=1")


def test_one_number_stands_for_all_channels() -> None:
    plain = validate(ModelSettings, {"name": "resnet8", "mean": 0, "std": [2.0]})
    model = build_model(plain, DATA, 0)
    assert model.mean.flatten().tolist() == [0, 0, 0]
    assert model.std.flatten().tolist() == [2, 2, 2]
    two = validate(ModelSettings, {"name": "resnet8", "mean": [0, 1]})
    with pytest.raises(InputError, match=r"2 and 3 channels, the images 3; .* one number for all"):
        build_model(two, DATA, 0)


def test_a_run_says_what_given_modules_get(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES))
    result = dskd.distill(
        student,
        teacher={"module": Brightness([0.0] * 3, [1.0] * 3), "mean": 0, "std": 1},
        data=DATA,
        method="kd",
        epochs=1,
        out=tmp_path / "run",
    )
    assert result.teacher_accuracy == 100
    assert "the teacher <Brightness> gets pixels from 0 to 1" in caplog.messages
    (line,) = [m for m in caplog.messages if m.startswith("the student <Sequential> gets")]
    assert "from -2.00 to 2.00 (mean 0.5 and std 0.25 of made)" in line
    assert line.endswith(
        'for pixels from 0 to 1, give student={"module": net, "mean": 0, "std": 1}'
    )


def test_a_model_that_normalises_its_images_keeps_its_own_statistics(tmp_path: Path) -> None:
    teacher = StagedModel(Brightness([0.0] * 3, [1.0] * 3), mean=[0.0] * 3, std=[1.0] * 3)
    result = dskd.distill(
        "resnet8", teacher=teacher, data=DATA, method="kd", epochs=1, out=tmp_path / "run"
    )
    assert result.teacher_accuracy == 100
