"""A teacher that was trained on another split of the same data is told."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import dskd
from dskd.engine.run import run_job
from dskd.engine.tasks.segmentation.job import SegmentationJob
from dskd.engine.tasks.segmentation.recipe import RECIPES
from dskd.engine.teacher_split import warn_of_other_split
from dskd.storage.run_files import LAST
from tests.data.file_writers import write_folder
from tests.segmentation.test_folders import write


def warned(there: Any, here: dict[str, Any], folder: Path, caplog: Any) -> list[str]:
    """What is said of a teacher whose run had the recipe ``there``."""
    if there is not None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(there))
    recipe = SimpleNamespace(plain=lambda: here)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="dskd"):
        warn_of_other_split(folder / "student.safetensors", recipe, held_out=True)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("there", "here", "key"),
    [
        ({"test_split": 0.2}, {"test_split": 0.2}, None),
        ({"test_split": 0.2}, {"test_split": 0.3}, "test_split=0.2, and this run has 0.3"),
        ({"test_split": 0.2}, {"test_split": None}, None),
        ({"split_seed": 0}, {"split_seed": 1}, "split_seed=0, and this run has 1"),
        ({"split_seed": None}, {"split_seed": 5}, "split_seed=7, and this run has 5"),
        ({"split_seed": None}, {"split_seed": 7}, None),
        ({"patient": r"p\d+"}, {"patient": r"patient\d+"}, r"patient='p\\d+'"),
        ({"train_per_class": 20}, {"train_per_class": 40}, "train_per_class=20"),
        ({"test_split": 0.2, "root": "elsewhere"}, {"test_split": 0.3}, None),
        ({"test_split": 0.2, "name": "other"}, {"test_split": 0.3}, None),
    ],
)
def test_a_split_is_compared_with_that_of_the_teachers_run(
    tmp_path: Path, caplog: Any, there: dict[str, Any], here: dict[str, Any], key: str | None
) -> None:
    source = {"name": "folder", "root": str(tmp_path / "x/../photos")}
    theirs = {"data": {**source, **there}, "seed": 7}
    own = {"data": {**source, "root": str(tmp_path / "photos"), **here}, "seed": 7}
    found = warned(theirs, own, tmp_path, caplog)
    assert len(found) == (key is not None)
    assert key is None or f"comes from a run with data.{key}" in found[0]


@pytest.mark.parametrize("root", ["a\0b", "~nobody/photos", ["x"], 3])
def test_a_recipe_that_no_run_wrote_does_no_harm(tmp_path: Path, caplog: Any, root: Any) -> None:
    theirs = {"data": {"name": "folder", "root": root, "test_split": {"a": "\x1b[2J"}}}
    own = {"data": {"name": "folder", "root": str(tmp_path), "test_split": 0.2}}
    assert not warned(theirs, own, tmp_path, caplog)
    theirs["data"]["root"] = str(tmp_path)
    (found,) = warned(theirs, own, tmp_path, caplog)
    assert "\x1b" not in found


@pytest.mark.parametrize("there", [None, [], {"data": 3}, {"seed": 1}])
def test_a_file_that_is_in_no_run_s_folder_says_nothing(
    tmp_path: Path, caplog: Any, there: Any
) -> None:
    assert not warned(there, {"data": {"name": "folder", "test_split": 0.2}}, tmp_path, caplog)


@pytest.mark.slow
def test_runs_on_photos_and_on_masks_say_it(tmp_path: Path, caplog: Any) -> None:
    photos = write_folder(tmp_path / "photos", per_class=8, side=16) / "train"
    train = {"epochs": 1, "batch_size": 4}

    def data(share: float) -> dict[str, Any]:
        return {"name": "folder", "root": photos, "size": 16, "test_split": share}

    taught = dskd.train("resnet8", data=data(0.25), train=train, out=tmp_path / "teacher")
    weights = taught.path / "student.safetensors"
    teacher = {"name": "resnet8", "checkpoint": weights, "trust": True}
    dskd.distill("resnet8", teacher=teacher, data=data(0.5), train=train, out=tmp_path / "run")
    assert "data.test_split=0.25, and this run has 0.5: the teacher may have" in caplog.text
    caplog.clear()
    own = ["teacher=null", "method.name=masks"]
    for number in range(8):
        write(tmp_path / "scans", f"patient{number}_1")
    small = ["data.name=folder", f"data.root={tmp_path / 'scans'}", "data.patients=2"]
    small += ["data.size=16", "student.width=2", "train.epochs=1"]
    for folder, changes in (
        ("first", own),
        ("second", ["method.name=kd", "teacher.width=2", "data.split_seed=1"]),
    ):
        checkpoint = [] if folder == "first" else [f"teacher.checkpoint={tmp_path}/first/{LAST}"]
        out = f"out={tmp_path / folder}"
        recipe = RECIPES.load(None, [*small, *changes, *checkpoint, out])
        run_job(SegmentationJob(recipe))
    assert "data.split_seed=0, and this run has 1" in caplog.text


def test_a_test_split_of_the_users_own_is_the_same_in_all_runs(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {name: shapes, split_seed: 0}\n")
    recipe = SimpleNamespace(plain=lambda: {"data": {"name": "shapes", "split_seed": 1}})
    warn_of_other_split(tmp_path / "student.safetensors", recipe, held_out=False)
    assert not caplog.records
