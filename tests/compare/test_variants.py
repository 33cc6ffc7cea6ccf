"""Names of methods with their settings."""

from __future__ import annotations

from typing import Any

import pytest

from dskd import methods
from dskd.compare.variants import method_variants, weights_of
from dskd.config import recipe
from dskd.errors import InputError


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("kdd", "unknown method 'kdd'; did you mean"),
        ("kd,kd", "the method 'kd' is named twice"),
        ("dskd:betta=1", "unknown setting 'method.betta'; did you mean 'method.beta'"),
        ("dskd:beta", "'beta' is not key=value"),
        ("dskd:beta=-1", "method.beta: input should be greater than or equal to 0"),
        ("dskd:preset=papr", "unknown preset of dskd 'papr'; did you mean 'paper'"),
        (" , ", "no method is named"),
        ("kd:temperature=\t4", "cannot name a method: use at most 200 printable characters"),
    ],
)
def test_names_that_cannot_be_compared(names: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method_variants([names], recipe.load("digits"), "equal")


def test_a_method_with_its_settings_is_a_text() -> None:
    settings: Any = {"name": "kd", "temperature": 2}
    with pytest.raises(InputError, match="methods: a name with its settings is needed, as in"):
        method_variants([settings], recipe.load("digits"), "equal")


def test_equal_weights_are_one_and_literature_has_each_method_s_own() -> None:
    plain = recipe.load("digits", ["method={name: kd, ce: 0.5, temperature: 2}"])
    (equal,) = method_variants(["kd"], plain, "equal")
    (published,) = method_variants(["kd"], plain, "literature")
    (varied,) = method_variants(["kd:kd=3"], plain, "literature")
    assert weights_of("kd", equal.method.options) == {"ce": 1.0, "kd": 1.0}
    assert weights_of("kd", published.method.options) == {"ce": 0.1, "kd": 0.9}
    assert weights_of("kd", varied.method.options) == {"ce": 0.1, "kd": 3.0}
    assert equal.method.options["temperature"] == 2.0


def test_weights_that_a_teacher_of_other_classes_turned_off_are_0() -> None:
    settings = methods.resolve("dskd", {})
    off = weights_of("dskd", settings, [{"agreement": None}])
    assert off == {
        **weights_of("dskd", settings, [{"agreement": 90.0}]),
        "kd": 0,
        "alpha": 0,
    }
    assert weights_of("dskd", settings)["kd"] == 1
    assert weights_of("ce", {"ce": 1.0}, [{"agreement": None}]) == {"ce": 1.0}


def test_a_preset_takes_the_place_of_the_recipe_s_settings_and_of_the_weights() -> None:
    plain = recipe.load("digits", ["method={name: dskd, tau: 5, gamma: 3}"])
    (variant,) = method_variants(["dskd:preset=paper:beta=2"], plain, "equal")
    paper = methods.find("dskd").presets["paper"]
    assert variant.method.options == methods.resolve("dskd", {**paper, "beta": 2})
    assert variant.method.options["kd"] == 0
    assert variant.label == "dskd:preset=paper:beta=2"


def test_all_means_every_method() -> None:
    names = [c.label for c in method_variants(["all"], recipe.load("digits"), "equal")]
    assert {"ce", "kd", "dskd"} <= set(names)
    assert len(names) == len(set(names))


def test_lists_are_settings_too() -> None:
    found = method_variants(["kd, dskd:supervise=[1,2]:beta=3"], recipe.load("digits"), "equal")
    assert [one.label for one in found] == ["kd", "dskd:supervise=[1,2]:beta=3"]
    assert found[1].method.options["supervise"] == [1, 2]
