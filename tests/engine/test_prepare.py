"""What a run says about the models that it builds."""

from __future__ import annotations

import pytest
import torch

from dskd.config import recipe
from dskd.engine.prepare import prepare_teacher
from dskd.engine.user_objects import UserObjects
from dskd.models.zoo import build
from tests.builders import make_dataset


@pytest.mark.parametrize("student", ["resnet8", "resnet14", "given"])
def test_a_teacher_that_begins_as_the_student_is_told(
    student: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dskd")
    module = build("resnet8", num_classes=4) if student == "given" else None
    name = "resnet8" if student == "given" else student
    own = recipe.load("digits", [f"student.name={name}", "teacher.name=resnet8", "seed=7"])
    objects = UserObjects(student=module)
    prepare_teacher(own, make_dataset(), objects, torch.device("cpu"))
    lines = [one for one in caplog.messages if "is a twin of the student" in one]
    assert len(lines) == (student == "resnet8")
    assert all("(seed 7)" in one for one in lines)
