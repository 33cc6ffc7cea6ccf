"""The page on the files of a run lists every file, and every key of its two files of numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import dskd
from dskd.compare.jobs import JOB_FILES
from dskd.compare.records import OWN_FILES
from dskd.storage.lock import LOCK_PID
from dskd.storage.run_files import FAILED, LOST, METRICS, RESULT, TEACHER, WRITTEN
from tests.builders import staged

PAGE = (Path(__file__).parents[2] / "docs/run-files.md").read_text()


def keys(heading: str) -> set[str]:
    """What the first column of the table below a heading names."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that writes all keys but those of float16."""
    out = tmp_path_factory.mktemp("run") / "dskd"
    dskd.distill(
        "resnet8",
        teacher={"module": staged("resnet14", 10, 1), "trust": True, "cache": "features"},
        recipe="digits",
        data={"fraction": 0.1, "val_fraction": 0.2, "augment": "none"},
        method={"name": "dskd", "allocate": "separate"},
        train={"epochs": 1, "batch_size": 32, "ema": 0.9, "clip_norm": 1.0, "device": "cpu"},
        out=out,
        verbose=0,
    )
    return out


def test_every_file_is_listed() -> None:
    listed = {name.rstrip("/") for name in keys("Files")}
    assert listed == set(WRITTEN) - {LOCK_PID, FAILED, LOST}
    beside_the_runs = {*OWN_FILES, JOB_FILES, TEACHER} - {LOCK_PID}
    assert {name.rstrip("/") for name in keys("Files of a comparison")} == beside_the_runs
    assert f"`{FAILED}`" in PAGE
    assert f"`{LOST}`" in PAGE


def test_every_key_of_the_metrics_is_explained(folder: Path) -> None:
    written = {
        re.sub(
            r"^loss/.*", "loss/NAME", re.sub(r"^stage\d+/test_accuracy", "NAME/test_accuracy", key)
        )
        for line in (folder / METRICS).read_text().splitlines()
        for key in json.loads(line)
    }
    written = {re.sub(r"^stage\d+", "stage1", key) for key in written}
    assert written == keys("metrics.jsonl") - {"skipped_steps"}


def test_every_key_of_the_result_is_explained(folder: Path) -> None:
    written = set(json.loads((folder / RESULT).read_text()))
    assert written == keys("result.json") - {"metric"}
