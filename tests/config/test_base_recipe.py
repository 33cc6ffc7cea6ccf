"""Stored recipes: what is older than a setting had its default."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dskd.config.base_recipe import BaseRecipe, method_differences
from dskd.config.recipe import load
from dskd.engine.tasks.graphs.recipe import RECIPES as GRAPHS
from dskd.engine.tasks.segmentation.recipe import RECIPES as SEGMENT

RECIPES: dict[str, BaseRecipe] = {
    "images": load("digits", ["method.name=dskd"]),
    "graphs": GRAPHS.load_shared(
        None, ["data.name=generated", "student.name=gat", "teacher.name=gat"]
    ),
    "segment": SEGMENT.load_shared(None, ["data.name=shapes", "teacher.width=32"]),
}
NEWER = {
    "images": [
        ("data", "labels"),
        ("train", "exits"),
        ("train", "int8_rounding"),
        ("train", "milestones"),
        ("student", "options"),
        ("teacher", "head"),
        ("method", "tau"),
    ],
    "graphs": [("data", "normalize"), ("train", "milestones"), ("student", "heads")],
    "segment": [("data", "seed_place"), ("train", "warmup"), ("teacher", "dropout")],
}


@pytest.mark.parametrize("task", RECIPES)
def test_a_setting_that_a_stored_recipe_lacks_had_its_default(task: str) -> None:
    recipe = RECIPES[task]
    stored = copy.deepcopy(recipe.plain())
    for section, key in NEWER[task]:
        del stored[section][key]
    assert recipe.differences(stored) == ""


@pytest.mark.parametrize("task", RECIPES)
def test_only_a_setting_with_another_value_than_its_default_is_missed(task: str) -> None:
    recipe = RECIPES[task]
    plain = recipe.plain()
    for section in ("data", "student", "teacher", "train"):
        for key, field in type(getattr(recipe, section)).model_fields.items():
            if key not in plain[section] or field.is_required():
                continue
            stored = {**plain, section: {k: v for k, v in plain[section].items() if k != key}}
            is_default = getattr(recipe, section).is_default(key)
            assert (recipe.differences(stored) == "") == is_default, key


def test_a_newer_setting_without_its_default_is_a_difference() -> None:
    stored = load("digits").plain()
    del stored["train"]["exits"], stored["method"]["beta"]
    here = load("digits", ["train.exits=true", "method.beta=3"])
    assert here.differences(stored) == (
        "method.beta is 10.0 there, 3.0 here; train.exits is False there, True here"
    )


@pytest.mark.parametrize("value", [3, None])
@pytest.mark.parametrize("section", ["train", "method", "teacher"])
def test_a_setting_that_exists_no_longer_is_a_difference(section: str, value: Any) -> None:
    recipe = RECIPES["images"]
    stored = copy.deepcopy(recipe.plain())
    stored[section]["old"] = value
    assert recipe.differences(stored) == (
        f"{section}.old is {value} there, and this version has no such setting"
    )
    del stored[section]["old"]
    assert recipe.differences(stored | {"old": value}) == (
        f"old is {value} there, and this version has no such setting"
    )


def test_a_setting_without_a_default_and_a_damaged_section_are_differences() -> None:
    recipe = RECIPES["images"]
    stored = copy.deepcopy(recipe.plain())
    del stored["data"]["name"]
    assert recipe.differences(stored) == "data.name is None there, digits here"
    for damaged in ({}, stored | {"train": 3}, stored | {"method": None}):
        assert recipe.differences(damaged)


def test_another_method_is_compared_as_it_is() -> None:
    kd = load("digits", ["method.name=kd"])
    listed = kd.differences(RECIPES["images"].plain())
    assert "method.name is dskd there, kd here" in listed
    assert "no such setting" not in listed
    assert kd.differences(RECIPES["images"].plain(), ignored=["method", "out"]) == ""


def test_only_a_larger_number_of_epochs_may_differ() -> None:
    recipe = load("digits", ["train.epochs=5"])
    for epochs, listed in ((4, ""), (6, "train.epochs is 6 there, 5 here")):
        stored = load("digits", [f"train.epochs={epochs}"]).plain()
        assert recipe.differences(stored, more_epochs=True) == listed
        assert recipe.differences(stored) == f"train.epochs is {epochs} there, 5 here"


def test_a_stored_method_is_compared_in_the_same_way() -> None:
    here = load("digits", ["method.name=kd"]).plain()["method"]
    stored = {"name": "kd"}
    assert method_differences(stored, here) == ""
    assert method_differences(stored | {"old": 1}, here) == (
        "method.old is 1 there, and this version has no such setting"
    )
    assert method_differences(stored | {"kd": 7.0}, here).startswith("kd is 7.0 there")
