"""A run's folder is protected: only the run's own files are replaced or removed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dskd.errors import InputError
from dskd.storage.diff import differences
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import FILES, RESULT

RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "root": None},
    "student": {"name": "resnet8"},
    "teacher": {"name": "resnet14", "checkpoint": None},
}


@dataclass
class Stored:
    """A recipe of a run, without a type."""

    values: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        return self.values

    def differences(self, stored: Mapping[str, Any], *, more_epochs: bool = False) -> str:
        return differences(stored, self.values)


ENVIRONMENT: dict[str, Any] = {"python": "3", "packages": {}}


def start(path: Path, *, trains_teacher: bool) -> RunDirectory:
    """A run that was started, and a folder where its teacher would be."""
    directory = RunDirectory(path, trains_teacher=trains_teacher)
    directory.start(RECIPE, ENVIRONMENT)
    (path / "teacher").mkdir()
    (path / "teacher/weights.pth").write_text("weights")
    return directory


def test_a_teacher_that_the_run_trained_is_removed_with_it(tmp_path: Path) -> None:
    directory = start(tmp_path, trains_teacher=True)
    (tmp_path / "notes.txt").write_text("mine")
    for name in (*FILES, RESULT):
        (tmp_path / name).write_text("{}")
    directory.check(Stored(RECIPE), resume=False, overwrite=True)
    directory.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_teacher_that_the_run_did_not_train_stays(tmp_path: Path) -> None:
    directory = start(tmp_path, trains_teacher=False)
    directory.check(Stored(RECIPE), resume=False, overwrite=True)
    directory.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_a_run_that_trains_a_teacher_does_not_overwrite_another_teacher(tmp_path: Path) -> None:
    start(tmp_path, trains_teacher=False)
    with pytest.raises(InputError, match=r"teacher is no part of the run in .*move it out"):
        RunDirectory(tmp_path, trains_teacher=True).check(
            Stored(RECIPE), resume=False, overwrite=True
        )


@pytest.mark.parametrize("claim", ["yes", 1, None, [True]])
def test_a_claim_that_is_not_true_does_not_remove_a_teacher(tmp_path: Path, claim: Any) -> None:
    directory = start(tmp_path, trains_teacher=True)
    facts = json.loads((tmp_path / "environment.json").read_text()) | {"trains_teacher": claim}
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    directory.clear()
    assert (tmp_path / "teacher/weights.pth").is_file()


def test_a_run_does_not_overwrite_files_that_it_reads(tmp_path: Path) -> None:
    directory = start(tmp_path, trains_teacher=False)
    inside = str(tmp_path / "teacher/weights.pth")
    for changed in (
        {"teacher": {"name": "resnet14", "checkpoint": inside}},
        {"teacher": None, "data": {"name": "folder", "root": str(tmp_path / "images")}},
    ):
        with pytest.raises(InputError, match="overwrite=True would empty"):
            directory.check(Stored(RECIPE | changed), resume=False, overwrite=True)


@pytest.mark.parametrize("left", ["environment.json", "recipe.yaml"])
def test_a_run_that_was_killed_as_it_began_can_begin_again(tmp_path: Path, left: str) -> None:
    directory = RunDirectory(tmp_path)
    with directory.locked():
        directory.start(RECIPE, ENVIRONMENT)
    for name in {"environment.json", "recipe.yaml"} - {left}:
        (tmp_path / name).unlink()
    directory.check(Stored(RECIPE), resume=True, overwrite=False)
    directory.check(Stored(RECIPE), resume=False, overwrite=True)
    with pytest.raises(InputError, match="already holds a run"):
        directory.check(Stored(RECIPE), resume=False, overwrite=False)
