"""What a run says about a published teacher whose images it prepares in another way."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dskd.config.schema import DataSettings, TeacherSettings
from dskd.engine.published_pixels import log_published_pixels
from dskd.errors import on_command_line

SQUASHED = "timm/vit_base_patch16_clip_384.openai_ft_in12k_in1k"
SAME = {"crop_pct": 0.95, "interpolation": "bicubic"}


@pytest.mark.parametrize(
    ("teacher", "data", "said"),
    [
        ({}, {}, "data.crop_pct=0.95 data.interpolation=bicubic gives the teacher those"),
        (
            {"epochs": None, "head": "fit"},
            {"interpolation": "bicubic"},
            "; data.crop_pct=0.95 gives",
        ),
        ({}, SAME, ""),
        ({}, {"crop_pct": 0.95}, ""),
        ({"epochs": 3}, {}, ""),
        ({"pretrained": False, "checkpoint": "x.pth", "epochs": None}, {}, ""),
        ({}, {"name": "digits", "root": None}, ""),
        ({"name": "torchvision/inception_v3"}, {"size": 299}, "; data.crop_pct=0.874269 data."),
        (
            {"name": SQUASHED},
            {"size": 384, **SAME},
            "squeezed to a square (crop_mode squash)",
        ),
    ],
)
def test_pixels_that_differ_from_those_of_the_weights_are_said(
    teacher: dict[str, Any], data: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    settings = {"name": "timm/resnet50", "pretrained": True, "epochs": 0} | teacher
    images = {"name": "folder", "root": "photos", "size": 224} | data
    with on_command_line():
        log_published_pixels(TeacherSettings(**settings), DataSettings(**images))
    assert said in caplog.text
    assert len(caplog.messages) == bool(said)
