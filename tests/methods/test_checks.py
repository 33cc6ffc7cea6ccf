"""Checks of a pair of models, and the choice of stages."""

from __future__ import annotations

import pytest

from dskd import methods
from dskd.errors import InputError
from dskd.methods.checks import (
    at_same_depth,
    check_classes,
    check_classifier,
    check_pooled,
    check_stages,
    shallow_stages,
)
from dskd.methods.contracts import Pair
from dskd.models.spec import ModelSpec, StageSpec
from tests.builders import staged


def spec(depth: int, classes: int = 4, pooled: int | None = 8) -> ModelSpec:
    return ModelSpec(classes, (StageSpec(8, 8, 8, True),) * depth, pooled, ("stem", "body"))


def test_stages_are_numbered_from_one_in_settings() -> None:
    assert shallow_stages(spec(4), None) == [0, 1, 2]
    assert shallow_stages(spec(4), [3, 1]) == [0, 2]
    for wrong in ([], [4], [1, 1]):
        with pytest.raises(InputError, match="shallow stages from 1 to 3, each once"):
            shallow_stages(spec(4), wrong)


def test_the_same_relative_depth_is_the_first_that_is_as_deep() -> None:
    assert at_same_depth(3, 3) == [0, 1, 2]
    assert at_same_depth(5, 3) == [0, 1, 1, 2, 2]
    assert at_same_depth(2, 5) == [2, 4]
    assert at_same_depth(4, 1) == [0, 0, 0, 0]


def test_a_pair_that_does_not_fit_is_refused() -> None:
    student = staged()
    assert check_classes(Pair(student, spec(2), spec(3))) == spec(3)
    with pytest.raises(InputError, match="this method needs a teacher"):
        check_classes(Pair(student, spec(2)))
    with pytest.raises(InputError, match="the teacher has 5 classes, the student 4"):
        check_classes(Pair(student, spec(2), spec(2, classes=5)))
    with pytest.raises(
        InputError,
        match=r"a feature map of the teacher; .*teacher={\"module\": net, \"stages\": \[\"a\"\]}",
    ):
        check_stages(Pair(student, spec(2), spec(0)))
    with pytest.raises(InputError, match="the vector that the student's classifier sees"):
        check_pooled(Pair(student, spec(2, pooled=None), spec(2)))
    with pytest.raises(InputError, match="not those of a linear layer"):
        check_classifier(Pair(student, spec(2), spec(2)))


@pytest.mark.parametrize("name", ["crd", "pkt", "rkd", "srrl", "sskd"])
def test_methods_on_vectors_refuse_models_without_them(name: str) -> None:
    student, without = staged(), spec(2, pooled=None)
    for what, pair in {
        "student": Pair(student, without, spec(2)),
        "teacher": Pair(student, spec(2), without),
    }.items():
        with pytest.raises(InputError, match=f"the vector that the {what}'s classifier sees"):
            methods.find(name)(pair)
