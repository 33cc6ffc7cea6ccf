"""The files of a comparison: results as they come, and refusals of what does not belong there."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from dskd.compare.grid import Grid, load_plan, plan
from dskd.compare.reader import read_comparison
from dskd.compare.runner import run_grid
from dskd.config.recipe import load
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.report.collect import collect
from dskd.runtime import device
from dskd.storage.run_files import LAST
from tests.builders import make_dataset
from tests.compare.small_comparison import NAMES, SMALL, Silent, small


def test_each_row_is_written_as_its_run_ends(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "results.jsonl").read_text().splitlines()]
    assert [(row["label"], row["seed"]) for row in rows] == [
        (name, seed) for seed in (0, 1) for name in NAMES.split(",")
    ]
    variants = {one.label: one for one in read_comparison(finished).variants}
    for row in rows:
        result = dict(variants[row["label"]].results[row["seed"]])
        assert {"label": row["label"], "seed": row["seed"]} | result == row


def test_damaged_rows_are_repaired_from_their_runs(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "torn"
    shutil.copytree(finished, out)
    rows = (out / "results.jsonl").read_text().splitlines(keepends=True)
    torn = [rows[0], rows[1][:100] + rows[1], "5\n", "null\n", rows[2], rows[2], rows[3][:50]]
    (out / "results.jsonl").write_text("".join(torn))
    run_grid(small(out), Silent())
    assert sorted((out / "results.jsonl").read_text().splitlines(True)) == sorted(rows)


def test_a_run_that_is_trained_again_has_one_row(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "kd" / "seed1")
    run_grid(small(out), Silent())
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert (
        len({(row["label"], row["seed"]) for row in rows}) == len(rows) == 2 * len(NAMES.split(","))
    )


def test_the_environment_is_that_of_the_machine_that_trained(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    before = (out / "environment.json").read_text()
    monkeypatch.setattr(sys, "argv", ["dskd", "compare", "again"])
    monkeypatch.setattr(device, "_processor", lambda: "a laptop")
    run_grid(small(out), Silent())  # for its table: nothing is trained
    assert (out / "environment.json").read_text() == before
    shutil.rmtree(out / "kd" / "seed1")
    run_grid(small(out), Silent())
    after = json.loads((out / "environment.json").read_text())
    assert after["processor"] == "a laptop"
    assert after["commands"] == [json.loads(before)["command"], ["dskd", "compare", "again"]]
    found = collect([out])
    assert found.commands == tuple(map(tuple, after["commands"]))
    processors = [one["processor"] for one in found.environments]
    assert processors.count("a laptop") == 1


def test_another_recipe_is_refused_and_told(finished: Path) -> None:
    other = load_plan("digits", [*SMALL, "train.lr=0.1"], [NAMES], finished, seeds=2)
    with pytest.raises(InputError, match=r"recipe: train\.lr is 0\.05 there, 0\.1 here"):
        run_grid(other, Silent())
    other = load_plan("digits", [*SMALL, "data.val_fraction=0.1"], [NAMES], finished, seeds=2)
    with pytest.raises(InputError, match=r"recipe: data\.val_fraction is None there, 0\.1 here"):
        run_grid(other, Silent())


def test_a_method_with_other_settings_under_the_same_name_is_refused(
    finished: Path,
) -> None:
    recipe = load("digits", [*SMALL, "method.beta=3"])
    other = plan(recipe, ["dskd"], finished, seeds=2)
    with pytest.raises(InputError, match=r"dskd has other settings .*: beta is 10\.0 there, 3\.0"):
        run_grid(other, Silent())


@pytest.mark.parametrize("name", ["notes.txt", ".film.part", "film.part"])
def test_a_folder_of_other_files_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        run_grid(small(tmp_path), Silent())
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.slow
def test_other_images_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "images"
    first, other = (make_dataset(classes=10, channels=1, size=8, seed=seed) for seed in (0, 1))
    run_grid(small(out, "ce", seeds=1), Silent(), UserObjects(data=first))
    before = (out / "comparison.json").read_bytes()
    for names in ("ce,kd", "ce"):
        said = r"holds a comparison on other images or .*; give the same"
        with pytest.raises(InputError, match=said):
            run_grid(small(out, names), Silent(), UserObjects(data=other))
    assert (out / "comparison.json").read_bytes() == before
    run_grid(small(out, "ce,kd", seeds=1), Silent(), UserObjects(data=first))


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False], ids=["of a checkpoint", "of its own"])
def test_another_teacher_is_refused(finished: Path, tmp_path: Path, given: bool) -> None:
    out, weights = tmp_path / "taught", tmp_path / "teacher.safetensors"
    shutil.copy(finished / "teacher" / LAST, weights)
    trusted = [f"teacher.checkpoint={weights}", "teacher.trust=true"]
    changes = [*SMALL, *(trusted if given else [])]

    def grid(names: str) -> Grid:
        return load_plan("digits", changes, [names], out, seeds=1)

    run_grid(grid("ce"), Silent())  # no method has needed the teacher yet
    run_grid(grid("kd"), Silent())
    before = (out / "comparison.json").read_bytes()
    shutil.copy(finished / "ce/seed0" / LAST, weights if given else out / "teacher" / LAST)
    with pytest.raises(InputError, match="holds a comparison with another teacher; give the same"):
        run_grid(grid("kd,dskd"), Silent())
    assert (out / "comparison.json").read_bytes() == before
    run_grid(grid("ce"), Silent())
