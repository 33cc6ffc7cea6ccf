"""The plan of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from dskd.compare.grid import load_plan
from dskd.errors import InputError
from dskd.storage.run_files import LAST


def test_out_belongs_to_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='give its folder with out="FOLDER"'):
        load_plan("digits", [f"out={tmp_path}"], ["kd"], None, seeds=1)


def test_a_plan_needs_a_seed_and_the_teacher_that_a_method_reads() -> None:
    with pytest.raises(InputError, match="seeds: a number of at least 1 is needed, got 0"):
        load_plan("digits", [], ["kd"], None, seeds=0)
    with pytest.raises(
        InputError, match=r"the method 'kd' needs a teacher; give one, as in teacher={\"name\""
    ):
        load_plan("digits", ["method={name: ce}", "teacher=null"], ["ce,kd"], None, seeds=1)


def test_each_run_has_its_folder_and_the_teacher_of_the_comparison(tmp_path: Path) -> None:
    grid = load_plan("digits", ["seed=3"], ["ce,dskd:beta=1"], tmp_path, seeds=2)
    recipe = grid.recipe_of(grid.variants[1], grid.seeds[1])
    assert (recipe.method.name, recipe.seed) == ("dskd", 4)
    assert recipe.out == tmp_path / "dskd+beta=1" / "seed4"
    assert recipe.teacher is not None
    assert recipe.teacher.checkpoint == tmp_path / "teacher" / LAST
    with_teacher = grid.recipe_with_teacher()
    assert with_teacher is not None
    assert with_teacher.method.name == "dskd"
    assert load_plan("digits", [], ["ce"], tmp_path, seeds=1).recipe_with_teacher() is None
