"""The comparison of fast paths: its arithmetic, its page, and settings that the recipe knows."""

from __future__ import annotations

import pytest
import torch
from fast_paths import PATHS, compared, page

from dskd.config.schema import TeacherSettings
from dskd.config.train_settings import TrainSettings
from dskd.runtime.device import environment


def test_a_path_is_compared_seed_by_seed() -> None:
    plain, fused = compared({"dskd": [50.0, 40.0], "dskd, fused BatchNorm": [51.0, 40.0]})
    assert "gap" not in plain
    assert (fused["base"], fused["gap"], fused["mean"]) == (
        "dskd",
        0.5,
        45.5,
    )
    assert fused["gap_half"] == pytest.approx(6.3531, abs=1e-3)  # 12.706 * 0.7071 / sqrt(2)


def test_every_path_has_settings_that_exist_and_a_base_before_it() -> None:
    names = list(PATHS)
    for name, path in PATHS.items():
        TeacherSettings(name="resnet20", **path.teacher)
        TrainSettings(**path.train)
        assert path.base is None or names.index(path.base) < names.index(name)


def test_the_page_shows_differences_with_their_intervals() -> None:
    rows = compared({"dskd": [50.0, 40.0], "dskd, fused BatchNorm": [51.0, 40.0]})
    text = page(
        {
            "command": "python benchmarks/fast_paths.py DATA OUT --seeds 2",
            "date": "2026-11-23",
            "commit": "abc1234",
            "environment": environment(torch.device("cpu")),
            "seeds": 2,
            "teacher_accuracy": 50.0,
            "rows": rows,
        }
    )
    assert "| dskd | 50.0, 40.0 | 45.00 |  |  |" in text
    assert "| dskd, fused BatchNorm | 51.0, 40.0 | 45.50 | dskd | +0.50 (-5.85 to +6.85) |" in text
    assert "with 2 seeds" in text
    assert "No path is shown to change the accuracy. The 1 mean differences are between" in text
    assert "differences of up to 6.9 points are not excluded" in text
    assert "Removed" not in text
