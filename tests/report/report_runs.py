"""Runs to make reports of: a tenth of the digits, a few seconds of training."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dskd
from dskd.config import recipe
from dskd.deploy import latency
from dskd.engine import run
from dskd.engine.user_objects import UserObjects
from dskd.report.build import make_report

SMALL = [
    "data.fraction=0.1",
    "teacher.name=resnet8",
    "teacher.epochs=1",
    "train.epochs=2",
    "train.batch_size=32",
]
"""130 images, 5 steps per epoch."""


def distilled(out: Path, *overrides: str) -> Path:
    """A finished run."""
    return run.distill(recipe.load("digits", [*SMALL, f"out={out}", *overrides])).path


def compared(out: Path, *methods: str, seeds: int) -> Path:
    """A finished comparison."""
    dskd.compare_methods(
        student="resnet8",
        teacher={"name": "resnet8", "epochs": 1},
        data={"name": "digits", "fraction": 0.1},
        methods=methods,
        seeds=seeds,
        train={"epochs": 2, "batch_size": 32},
        out=out,
    )
    return out


def reported(paths: list[Path], output: Path, given: UserObjects | None = None) -> Path:
    """A report without the time that measuring latency takes."""
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(latency, "SECONDS", 0.0)
        return make_report(paths, output, given=given)[0]


def streamed(path: Path, classes: int) -> Path:
    """A finished run of one epoch by labels on streamed image files of many classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 1), ("test", 2)):
        for label in range(classes):
            folder = path / "images" / split / f"class{label:02}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return dskd.train(
        student="resnet8",
        data={"name": "folder", "root": path / "images", "loading": "stream", "workers": 0},
        train={"epochs": 1, "batch_size": 16},
        out=path / "run",
    ).path
