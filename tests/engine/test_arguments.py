"""From the arguments of a Python call to a recipe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import dskd
from dskd.config.recipe import load
from dskd.config.schema import ModelSettings, Recipe, TeacherSettings
from dskd.engine import run
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.models.factory import load_model
from tests.builders import make_dataset
from tests.data.file_writers import write_folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, UserObjects]]:
    """Recipe and objects of each run, which is not trained."""
    runs: list[tuple[Recipe, UserObjects]] = []

    def note(recipe: Recipe, *, objects: UserObjects, **_: Any) -> None:
        runs.append((recipe, objects))

    monkeypatch.setattr(run, "distill", note)
    return runs


Runs = list[tuple[Recipe, UserObjects]]
TIMM: dict[str, Any] = {"student": "timm/resnet18", "teacher": "timm/resnet50", "data": "digits"}


def test_names_alone_are_enough(
    seen: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", side=224)
    dskd.distill("timm/mobilenetv4_conv_small", teacher="timm/resnet50", data="photos/")
    ((recipe, objects),) = seen
    assert objects == UserObjects()
    assert (recipe.data.name, recipe.data.root, recipe.data.size) == ("folder", Path("photos"), 224)
    assert recipe.train.schedule == "cosine"
    assert str(recipe.out) == ("runs/timm_mobilenetv4_conv_small-timm_resnet50-photos/dskd-seed0")
    (line,) = caplog.messages
    assert line.startswith('chosen: data={..., "size": 224, ')


def test_the_same_run_from_the_command_line(seen: Runs) -> None:
    dskd.distill("resnet8", teacher="resnet20", data="cifar10", method="kd", epochs=3, seed=2)
    parts = ["student.name=resnet8", "teacher.name=resnet20", "data.name=cifar10", "train.epochs=3"]
    assert seen[0][0].plain() == load(None, [*parts, "method.name=kd", "seed=2"]).plain()


def test_a_recipe_takes_arguments_as_changes(seen: Runs, tmp_path: Path) -> None:
    module = load_model("resnet14", num_classes=10, in_channels=1)
    dskd.distill(recipe="digits")
    dskd.distill(
        module,
        recipe="digits",
        data={"fraction": 0.5},
        teacher={"epochs": 2},
        method="kd",
        train={"lr": 0.2},
        epochs=9,
        seed=4,
        out=tmp_path,
    )
    changes = [
        "data.fraction=0.5",
        "teacher.epochs=2",
        "method.name=kd",
        "train.lr=0.2",
        "train.epochs=9",
        "seed=4",
        f"out={tmp_path}",
    ]
    assert seen[0][0].plain() == load("digits").plain()
    expected = load("digits", changes).plain()
    expected["student"]["name"] = "<ResNet>"
    assert seen[1][0].plain() == expected
    assert seen[1][1].student is module


def test_a_recipe_may_be_a_file_or_a_mapping(seen: Runs, tmp_path: Path) -> None:
    text = "data: {name: digits}\nstudent: {name: resnet8}\nmethod: {name: ce}\n"
    (tmp_path / "mine.yaml").write_text(text)
    dskd.distill(recipe=tmp_path / "mine.yaml")
    dskd.distill(recipe={"data": {"name": "digits"}, "student": {"name": "resnet8"}}, method="ce")
    one, two = (recipe for recipe, _ in seen)
    assert (one.out, two.out) == (Path("runs/mine/ce-seed0"), Path("runs/resnet8-digits/ce-seed0"))
    assert one.changed(out=None) == two.changed(out=None)


def test_training_by_labels_leaves_out_the_teacher_of_a_recipe(seen: Runs) -> None:
    dskd.train(recipe="digits", epochs=1)
    ((recipe, _),) = seen
    assert (recipe.teacher, recipe.method.name) == (None, "ce")
    assert recipe.out == Path("runs/digits/ce-seed0")


def test_a_comparison_has_the_recipe_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[Recipe] = []
    monkeypatch.setattr("dskd.api.images._compare", lambda recipe, *_: shared.append(recipe))
    dskd.compare_methods(recipe="digits", methods="kd", train={"optimizer": "dot"})
    assert shared[0] == load("digits", ["train.optimizer=dot"])
    own = {"student": {"name": "resnet8"}, "data": {"name": "digits"}, "method": {"beta": 3}}
    dskd.compare_methods(recipe=own, teacher="resnet14", methods="dskd")
    assert shared[1].method.options["beta"] == 3
    dskd.compare_methods(recipe=own, methods="ce,byot")
    assert shared[2].method.name == "ce"


OWN: dict[str, Any] = {
    "name": "resnet14",
    "checkpoint": "weights.pth",
    "checkpoint_key": "ema",
    "options": {"drop": 0.1},
    "stages": ["layer1"],
    "mean": [0.5],
    "std": 0.5,
}
"""Settings of a recipe's own model, that a module does not have."""


def test_a_module_has_none_of_the_settings_of_the_model_in_its_place(seen: Runs) -> None:
    module = load_model("resnet14", num_classes=10, in_channels=1)
    dskd.distill(recipe="digits", teacher=module)  # that of the recipe has epochs
    recipe = {"data": {"name": "digits"}, "student": {"name": "resnet8"}}
    teacher = OWN | {"epochs": 3, "lr": 0.1, "cache": "logits"}
    dskd.distill(module, recipe=recipe | {"student": OWN, "teacher": teacher}, teacher=module)
    kept: dict[str, Any] = {"name": "<ResNet>", "stages": ["layer1"], "mean": [0.5]}
    dskd.distill(
        {"module": module, "std": 2},
        recipe=recipe | {"student": kept},
        method="ce",
    )
    digits, replaced, again = (one for one, _ in seen)
    assert digits.teacher == TeacherSettings(name="<ResNet>")
    assert replaced.teacher == TeacherSettings(name="<ResNet>", cache="logits")
    assert replaced.student == ModelSettings(name="<ResNet>")
    assert again.student == ModelSettings(**kept, std=[2]), "of the same module, in a stored recipe"
    for key in ("epochs", "lr"):
        with pytest.raises(InputError, match=f"teacher.{key} does not apply: a module counts as"):
            dskd.distill(recipe="digits", teacher={"module": module, key: 2})


def test_numbers_may_be_text_as_elsewhere(seen: Runs) -> None:
    dskd.distill(**TIMM, train={"epochs": "12"})
    assert seen[0][0].train.epochs == 12


def test_nothing_is_filled_in_for_modules(seen: Runs) -> None:
    data, module = make_dataset(3), load_model("resnet8", num_classes=3)
    dskd.distill(module, teacher=module, data=data)
    ((recipe, objects),) = seen
    assert objects == UserObjects(data, module, module)
    assert recipe.train == type(recipe.train)()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, 'student and data are needed: give student="timm/mobilenetv4_conv_small"'),
        ({"student": "resnet8"}, 'give data="photos/"'),
        ({"student": 8, "data": "digits"}, "student: a name, an object or a mapping"),
        ({"recipe": "digtis"}, "did you mean 'digits'"),
        ({"recipe": {"data": {"name": "digits"}}}, "student is missing; set it"),
        ({"recipe": "digits", "train": {"lr": -1}}, r"train\.lr"),
        ({**TIMM, "data": {"name": "folder", "root": 5}}, r"data\.root"),
        ({**TIMM, "data": {"name": "folder", "size": "big"}}, r"data\.size"),
        ({**TIMM, "train": {"epochs": "ten"}}, r"train\.epochs"),
        ({**TIMM, "student": {"name": "timm/resnet18", "options": [1]}}, r"student\.options"),
        ({**TIMM, "train": "fast"}, "train holds settings"),
        ({"recipe": {"student": "resnet8"}}, "student holds settings, as in .*; got 'resnet8'"),
        ({"recipe": {"train": 5}}, "train holds settings, as in {'epochs': 10}; got 5"),
    ],
)
def test_what_is_missing_or_wrong_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        dskd.distill(**arguments)
