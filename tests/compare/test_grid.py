"""The plan of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from dskd.api.task import shared
from dskd.compare.grid import load_plan
from dskd.engine.tasks.graphs.recipe import RECIPES as GRAPHS
from dskd.errors import InputError
from dskd.storage.run_files import LAST


def test_out_belongs_to_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='give its folder with out="FOLDER"'):
        load_plan("digits", [f"out={tmp_path}"], ["kd"], None, seeds=1)


@pytest.mark.parametrize(
    ("override", "form"),
    [
        ("method.temperature=8", "NAME:temperature=8"),
        ("method.name=fitnet", "fitnet"),
        ("method={name: kd}", "NAME:SETTING=VALUE"),
    ],
)
def test_settings_of_methods_belong_to_their_names(override: str, form: str) -> None:
    key = override.partition("=")[0]
    message = f'a comparison does not take {key}; .*, as in methods="{form}"'
    with pytest.raises(InputError, match=message):
        load_plan("digits", [override], ["ce,kd"], None, seeds=1)
    with pytest.raises(InputError, match=message):
        GRAPHS.load_shared("generated", [override])


def test_methods_without_a_teacher_are_compared_without_a_recipe() -> None:
    options = ["data.name=digits", "student.name=resnet8"]
    assert load_plan(None, options, ["ce,byot"], None, seeds=1).recipe_with_teacher() is None
    with pytest.raises(InputError, match="the method 'kd' needs a teacher"):
        load_plan(None, options, ["ce,kd"], None, seeds=1)


def test_a_recipe_s_method_that_needs_a_teacher_is_not_in_the_way() -> None:
    assert load_plan("digits", ["teacher=null"], ["ce,byot"], None, seeds=1).recipe.teacher is None
    graphs = {"data": {"name": "generated"}, "method": {"name": "dskd", "beta": 2.0}}
    for values, method in ((graphs, "graphs/alone"), (graphs | {"teacher": {}}, "graphs/dskd")):
        assert shared(GRAPHS, values, None)[0]["method"]["name"] == method
    assert shared(GRAPHS, graphs, "gat")[0]["method"] == {"name": "graphs/dskd", "beta": 2.0}


def test_a_comparison_of_a_task_without_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "data: {name: generated}\nstudent: {name: gcn}\nteacher: {name: gat}\n"
        "method: {name: dskd}\n"
    )
    alone = GRAPHS.load_shared(str(tmp_path / "mine.yaml"), ["teacher=null"])
    assert (alone.method.name, alone.teacher) == ("graphs/alone", None)


def test_a_plan_needs_a_seed_and_the_teacher_that_a_method_reads(tmp_path: Path) -> None:
    alone = tmp_path / "alone.yaml"
    alone.write_text("data: {name: digits}\nstudent: {name: resnet8}\n")
    with pytest.raises(InputError, match="seeds: a number of at least 1 is needed, got 0"):
        load_plan("digits", [], ["kd"], None, seeds=0)
    with pytest.raises(
        InputError, match=r"the method 'kd' needs a teacher; give one, as in teacher={\"name\""
    ):
        load_plan(str(alone), [], ["ce,kd"], None, seeds=1)


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
