"""Differing settings are listed; paths are ignored."""

from __future__ import annotations

from dskd.storage.diff import differences


def test_equal_recipes_have_no_differences() -> None:
    recipe = {"seed": 0, "train": {"lr": 0.1, "milestones": [1, 2]}}
    assert differences(recipe, dict(recipe)) == ""


def test_nested_and_missing_settings_are_listed_by_their_keys() -> None:
    there = {"seed": 1, "train": {"lr": 0.1}, "teacher": None}
    here = {"seed": 1, "train": {"lr": 0.2}, "teacher": {"name": "resnet8"}}
    assert differences(there, here) == (
        "teacher.name is None there, resnet8 here; train.lr is 0.1 there, 0.2 here"
    )


def test_paths_are_ignored_also_in_a_comparison_s_recipe() -> None:
    data = {"root": "a", "unlabelled": "a/more", "shards": ["a/*.tar"]}
    there = {"out": "a", "data": data, "teacher": {"checkpoint": "a", "name": "x"}}
    data = {"root": "b", "unlabelled": "b/more", "shards": "b/*.tar"}
    here = {"out": "b", "data": data, "teacher": {"checkpoint": "b", "name": "x"}}
    assert differences(there, here) == ""
    assert differences({"recipe": there}, {"recipe": here}) == ""
