"""Recipes: the shipped ones, how they resolve, and that nothing else is let in."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dskd
from dskd import methods
from dskd.compare.grid import load_plan
from dskd.config import recipe
from dskd.config.overrides import with_method
from dskd.config.recipe import (
    compose,
    load,
    load_by_labels,
    load_for_a_run,
    resolve,
    shipped,
)
from dskd.config.schema import Recipe
from dskd.engine import run
from dskd.engine.lr_schedule import learning_rate
from dskd.engine.prepare import prepare
from dskd.engine.tasks.segmentation.recipe import RECIPES as SEGMENTATION
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, on_command_line
from dskd.settings import known_keys
from tests.builders import make_dataset

PAIRS = {
    "resnet56-resnet20": 0.05,
    "resnet110-resnet32": 0.05,
    "resnet32x4-resnet8x4": 0.05,
    "wrn_40_2-wrn_16_2": 0.05,
    "wrn_40_2-wrn_40_1": 0.05,
    "vgg13-vgg8": 0.05,
    "resnet32x4-ShuffleV1": 0.01,
    "resnet32x4-ShuffleV2": 0.01,
    "vgg13-MobileNetV2": 0.01,
    "ResNet50-MobileNetV2": 0.01,
    "wrn_40_2-ShuffleV1": 0.01,
}
"""The pairs of the literature on CIFAR-100, and the learning rate of each student."""

SMALLEST: dict[str, Any] = {
    "data": {"name": "digits"},
    "student": {"name": "resnet8"},
    "teacher": {"name": "resnet20"},
}


# ---- the shipped ones


def test_the_pairs_are_those_of_the_literature() -> None:
    assert {name for name in shipped() if name.startswith("cifar100/")} == {
        f"cifar100/{pair}" for pair in PAIRS
    }


@pytest.mark.parametrize(("pair", "lr"), PAIRS.items())
def test_a_pair_has_the_settings_of_the_literature(pair: str, lr: float) -> None:
    plan = load(f"cifar100/{pair}")
    assert plan.teacher is not None
    assert f"{plan.teacher.name}-{plan.student.name}" == pair
    assert plan.data.model_dump(exclude_defaults=True) == {
        "name": "cifar100",
        "crop_padding": 4,
        "flip": True,
    }
    train = plan.train
    assert (train.epochs, train.batch_size, train.optimizer, train.momentum) == (
        240,
        64,
        "sgd",
        0.9,
    )
    assert (train.weight_decay, train.nesterov, train.warmup) == (5e-4, False, 0)
    assert (train.lr, plan.teacher.lr or train.lr) == (lr, 0.05)
    rates = [rate(plan, epoch) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)]
    assert rates == pytest.approx([lr, lr, *[lr / 10] * 2, *[lr / 100] * 2, *[lr / 1000] * 2])
    options = plan.method.options
    assert plan.method.name == "dskd"
    assert {key: options[key] for key in ("temperature", "ce", "kd")} == {
        "temperature": 4,
        "ce": 1,
        "kd": 1,
    }


def rate(plan: Recipe, epoch: int) -> float:
    train = plan.train
    return learning_rate(
        epoch,
        train.epochs,
        train.lr,
        train.schedule,
        milestones=train.milestones,
        gamma=train.gamma,
        warmup=train.warmup,
    )


@pytest.mark.parametrize(
    ("epochs", "drops"), [(240, [150, 180, 210]), (8, [5, 6, 7]), (80, [50, 60, 70])]
)
def test_milestones_scale_with_the_epochs(epochs: int, drops: list[int]) -> None:
    plan = load("cifar100/vgg13-vgg8", [f"train.epochs={epochs}"])
    rates = [rate(plan, epoch) for epoch in range(epochs)]
    assert [epoch for epoch in range(1, epochs) if rates[epoch] < rates[epoch - 1]] == drops


def test_tiny_imagenet_comes_at_64_and_at_32_pixels() -> None:
    names = [name for name in shipped() if name.startswith("tiny_imagenet/")]
    assert names
    for name in names:
        plan = load(name)
        assert plan.data.name == "tiny_imagenet"
        assert plan.data.size == (32 if name.endswith("-32") else None)
        pair = name.removeprefix("tiny_imagenet/").removesuffix("-32")
        assert plan.teacher is not None
        assert pair == f"{plan.teacher.name}-{plan.student.name}"
        assert plan.train == load(f"cifar100/{pair}").train


@pytest.mark.parametrize("name", shipped())
def test_a_resolved_recipe_resolves_to_itself_also_through_yaml(name: str) -> None:
    plan = load(name)
    assert resolve(plan.plain(), Path("elsewhere")) == plan
    assert resolve(yaml.safe_load(yaml.safe_dump(plan.plain())), Path("elsewhere")) == plan
    assert plan.out == Path("runs") / name / "dskd-seed0"


def test_a_resolved_recipe_names_every_default() -> None:
    plain = load("digits").plain()
    for key in [*known_keys(Recipe), "method.adapter_width", "method.tau"]:
        value: Any = plain
        for part in key.split("."):
            assert part in value, key
            value = value[part]


# ---- one's own


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("data: {name: digits}\nstudent: {name: resnet8}\nmethod: {name: ce}\n")
    plan = load(str(path), ["seed=7", "train.lr=1e-3"])
    assert (plan.out, plan.seed, plan.train.lr) == (Path("runs/mine/ce-seed7"), 7, 1e-3)
    path.write_text(yaml.safe_dump(plan.plain()))
    assert load(str(path)) == plan


def test_overrides_apply_in_their_order_whatever_they_override() -> None:
    plan = load(
        "digits",
        [
            "method.standardize=true",
            "method={name: kd}",
            "method.temperature=2",
            "train.schedule=step",
            "train.milestones=[0.5, 0.9]",
            "student.stages=[layer1,layer2]",
            "teacher.checkpoint=a=b.pth",
            "train.epochs=3",
            "train.epochs=4",
        ],
    )
    assert plan.method.options == {"temperature": 2.0, "ce": 1.0, "kd": 1.0, "standardize": False}
    assert plan.train.milestones == (0.5, 0.9)
    assert plan.student.stages == ["layer1", "layer2"]
    assert plan.teacher is not None
    assert plan.teacher.checkpoint == Path("a=b.pth")
    assert plan.train.epochs == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_listed_numbers_are_taken_from_the_command_line(channels: int) -> None:
    assert load("digits", [f"data.channels={channels}"]).data.channels == channels


def test_one_number_stands_for_all_channels_on_the_command_line() -> None:
    teacher = load("digits", ["teacher.mean=0", "teacher.std=1"]).teacher  # as a message advises
    assert teacher is not None
    assert (teacher.mean, teacher.std) == ([0.0], [1.0])
    assert load("digits", ["student.mean=.5"]).student.mean == [0.5]
    for change in ("train.milestones=0.5", "data.crop_scale=0.5", "data.value_range=5"):
        with pytest.raises(InputError, match=r"a list is needed, as in \[a, b\], got"):
            load("digits", [change])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", 20),
        ("[cat,dog]", ["cat", "dog"]),
        ("[3,1]", ["3", "1"]),
        ("null", None),
    ],
)
def test_classes_are_a_number_or_names(text: str, value: object) -> None:
    plan = load("digits", [f"data.classes={text}"])
    assert plan.data.classes == value
    assert resolve(plan.plain(), Path()).data.classes == value


def test_a_preset_sets_what_is_not_given() -> None:
    paper = methods.find("dskd").presets["paper"]
    options = load("digits", ["method={name: dskd, preset: paper, beta: 3, tau: 2}"]).method.options
    assert options == methods.resolve("dskd", {**paper, "beta": 3, "tau": 2})
    assert "preset" not in options


def test_home_is_meant_by_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load("digits", ["out=~/run"]).out == Path("/home/me/run")


def test_training_by_labels_reads_neither_teacher_nor_method() -> None:
    plan = load_by_labels("cifar100/vgg13-vgg8", ["train.epochs=3", "seed=2"])
    assert (plan.teacher, plan.method.name) == (None, "ce")
    assert plan.out == Path("runs/cifar100/vgg13-vgg8/ce-seed2")
    for override in ("teacher.epochs=3", "teacher=null", "method.name=ce", "method.ce=2"):
        with pytest.raises(InputError, match=r"no effect .* dskd\.distill\('digits'\)"):
            load_by_labels("digits", [override])


def test_a_preset_on_the_command_line_replaces_the_settings_of_the_file() -> None:
    recipe, paper = "cifar100/resnet56-resnet20", methods.find("dskd").presets["paper"]
    options = load(recipe, ["method.preset=paper", "method.beta=3"]).method.options
    assert options == methods.resolve("dskd", {**paper, "beta": 3})
    options = load(recipe, ["method.preset=literature", "method.name=kd"]).method.options
    assert (options["ce"], options["kd"]) == (0.1, 0.9)
    values = compose("digits", ["method.preset=paper"]).values
    assert values["method"] == {"name": "dskd", "preset": "paper"}
    assert with_method({"name": "kd", "ce": 1}, {"preset": "literature"}) == {
        "name": "kd",
        "preset": "literature",
    }
    shapes = SEGMENTATION.load("shapes", ["method.preset=public-code"]).method
    assert shapes.name == "segment/mixed"


# ---- augmentations


def test_a_set_stands_for_settings_that_can_be_changed() -> None:
    data = load("digits", ["data.augment=cifar"]).data
    assert (data.crop_padding, data.flip, data.augmentation.used()) == (4, True, [])
    data = load("digits", ["data.augment=strong", "data.random_erasing=0", "data.flip=no"]).data
    assert (data.crop_padding, data.flip) == (0, False)
    assert data.augmentation.used() == ["crop_scale", "auto_augment"]
    assert data.crop_scale == (0.08, 1)


def test_a_set_on_the_command_line_replaces_the_augmentations_of_the_file() -> None:
    assert load("digits").data.crop_padding == 1
    assert load("digits", ["data.augment=none"]).data.crop_padding == 0
    changed = load(
        "digits", ["data.augment=imagenet", "data.crop_padding=3", "data.crop_scale=null"]
    )
    assert changed.data.augmentation.used() == []
    assert changed.data.crop_padding == 3


def test_a_resolved_recipe_has_every_setting_of_the_set() -> None:
    plain = load("digits", ["data.augment=strong"]).plain()
    assert plain["data"]["auto_augment"] == "trivialaugment"
    assert resolve(plain, Path("runs")).plain() == plain


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.crop_scale=[0.1,1]"], "data.crop_scale and data.crop_padding are two kinds"),
        (["data.interpolation=bilinear"], "data.interpolation does nothing without"),
        (["data.crop_ratio=[1,1]"], "data.crop_ratio does nothing without data.crop_scale"),
        (
            ["data.augment=imagenet", "teacher.cache=logits", "method.name=kd"],
            "teacher.cache=logits needs .* data.crop_scale draws any number",
        ),
        (
            ["data.augment=strong", "teacher.cache=features"],
            "data.crop_scale and data.auto_augment and data.random_erasing draw any number",
        ),
    ],
)
def test_augmentations_that_contradict_are_refused(changes: list[str], said: str) -> None:
    with on_command_line(), pytest.raises(InputError, match=said):
        load("digits", changes)


# ---- what is refused

WHOLE = ["0", "1.5", "many", "true", "null", "[1]", "{a: 1}", "-3", "1e30", "9" * 40]
SHARES = ["-0.1", "1.5", ".nan", ".inf", "half", "true", "null", "[1]", "{a: 1}"]
NUMBERS = ["-1", ".nan", ".inf", "much", "true", "null", "[1]", "{a: 1}"]
TEXT = ["5", "null", "true", "[a]", "{a: 1}"]
PATHS = ["5", "true", "[a]", "{a: 1}", '""', '"a\\0b"']
ONLY_TEXT = ["5", "true", "[a]", "{a: 1}"]
SWITCH = ["7", "maybe", "null", "[true]", "{a: 1}"]
LISTS = ["5", "layer1", "[]", "[null]", "[[a]]", "{a: 1}", "true"]
CHOICE = ["best", "5", "null", "true", "[step]", "{a: 1}"]
WRONG = {
    "data.name": [*TEXT, "digts", '""'],
    "data.root": PATHS,
    "data.image_column": ONLY_TEXT,
    "data.label_column": ONLY_TEXT,
    "data.split_column": ONLY_TEXT,
    "data.shards": ["5", "true", "[5]", "[]", "[a, '']", "[[a]]", "{a: 1}", '""'],
    "data.hub": ONLY_TEXT,
    "data.size": ["0", "1.5", "big", "true", "[8]", "{a: 1}", "5000"],
    "data.classes": ["1", "0", "-2", "2.5", "cat", "true", "[]", "[[a]]", "[null]", "{a: 1}"],
    "data.fraction": [*SHARES, "0"],
    "data.val_fraction": [*(share for share in SHARES if share != "null"), "1"],
    "data.test_split": [*(share for share in SHARES if share != "null"), "0", "1"],
    "data.test_fraction": [*SHARES, "0"],
    "data.crop_padding": [*WHOLE[1:], "257"],
    "data.flip": SWITCH,
    "data.augment": [*CHOICE, "cifar10"],
    "data.crop_scale": ["0.5", "[0.1]", "[0,1]", "[0.5,0.1]", "[0.1,1.5]", "[a,b]", "true"],
    "data.crop_ratio": ["1", "[1]", "[0,1]", "[2,1]", "[.nan,1]", "null", "true"],
    "data.auto_augment": [*CHOICE, "autoaugment"],
    "data.color_jitter": [*NUMBERS, "1.5"],
    "data.random_erasing": [*NUMBERS, "1.5"],
    "data.interpolation": ["nearest", "5", "true", "[bicubic]", "{a: 1}"],
    "data.crop_pct": [*SHARES, "0"],
    "data.labels": [*CHOICE, "some"],
    "data.loading": [*CHOICE, "disk"],
    "data.workers": [value for value in WHOLE[1:] if value != "null"],
    "data.channels": ["0", "2", "1.5", "gray", "[1]"],
    "data.value_range": ["5", "[1]", "[0,1,2]", "[a,b]", "[.nan,1]", "[1,1]", "[2,1]", "{a: 1}"],
    "data.max_pixels": [value for value in WHOLE if value != "null"],
    "data.skip_bad": SWITCH,
    "data.cache_dir": PATHS,
    "data.unlabelled": PATHS,
    "data.unlabelled_share": [*SHARES, "0", "1"],
    "student.name": TEXT,
    "student.stages": [*LISTS, "[1]"],
    "student.mean": [*LISTS[1:], "[a]", "[.nan]", "[.inf]", "[true]"],
    "student.std": [*LISTS[1:], "[a]", "[.nan]", "[.inf]", "[true]", "[0]", "[-1]"],
    "student.pretrained": ["5", "0.5"],
    "student.checkpoint": PATHS,
    "student.checkpoint_key": ONLY_TEXT,
    "student.options": ["5", "text", "null", "[a]", "{1: 2}"],
    "teacher.epochs": [value for value in WHOLE if value != "null"],
    "teacher.fuse_batchnorm": SWITCH,
    "teacher.trust": SWITCH,
    "teacher.head": CHOICE,
    "teacher.lr": [*(value for value in NUMBERS if value != "null"), "0", "1e7"],
    "teacher.cache": CHOICE,
    "teacher.views": WHOLE,
    "teacher.cache_dir": PATHS,
    "method.name": [*TEXT, "dksd"],
    "train.epochs": WHOLE,
    "train.batch_size": [*WHOLE, "1"],
    "train.lr": [*NUMBERS, "0", "1e7"],
    "train.schedule": CHOICE,
    "train.milestones": ["0.5", "null", "[1]", "[a]", "[0.5,0.4]", "[0.5,0.5]", "[-0.1]", "{a: 1}"],
    "train.gamma": [*SHARES, "0"],
    "train.warmup": [*NUMBERS, "30"],
    "train.optimizer": [*CHOICE, "timm/lambb"],
    "train.min_lr": [*NUMBERS, "1e7"],
    "train.decay_norms_and_biases": SWITCH,
    "train.clip_norm": [*(value for value in NUMBERS if value != "null"), "0"],
    "train.accumulate": WHOLE,
    "train.evaluate_every": WHOLE,
    "train.label_smoothing": [*SHARES, "1"],
    "train.class_weights": ["0.5", "[a]", "[-1]", "[.inf]", "{a: 1}", "equal", "true"],
    "train.mixup": [*NUMBERS, "1001"],
    "train.cutmix": [*NUMBERS, "1001"],
    "train.mix_probability": [*SHARES, "0"],
    "train.exits": SWITCH,
    "train.int8_rounding": SWITCH,
    "train.ema": [*(share for share in SHARES if share != "null"), "1"],
    "train.momentum": [*SHARES, "1"],
    "train.dot_delta": [*SHARES, "1"],
    "train.nesterov": SWITCH,
    "train.compile": SWITCH,
    "train.weight_decay": NUMBERS,
    "train.precision": CHOICE,
    "train.sync_batchnorm": SWITCH,
    "train.device": CHOICE,
    "train.threads": [value for value in WHOLE if value != "null"],
    "seed": [*WHOLE[1:]],
    "out": PATHS,
}
WRONG |= {
    key.replace("student", "teacher"): values
    for key, values in WRONG.items()
    if key.startswith("student.")
}


def test_every_key_is_tried() -> None:
    assert set(WRONG) == set(known_keys(Recipe))


MODELS = ("student", "teacher")
# On the command line, these are names.
_TYPED = (TEXT, PATHS, ONLY_TEXT)
_NAMES = {(key, text) for key, texts in WRONG.items() if texts in _TYPED for text in texts}
_NAMES |= {(key, text) for key in ("data.name", "method.name") for text in TEXT}
_NAMES |= {("data.classes", "[null]"), ("data.name", '""')}
_NAMES |= {("data.shards", text) for text in ("5", "true", "[5]", "{a: 1}", '""')}
_NAMES |= {
    (f"{model}.stages", text) for model in ("student", "teacher") for text in ("[null]", "[1]")
}


@functools.cache
def _marked(key: str) -> str:
    """The recipe of the digits, but with a mark as the value of a key.

    It has no defaults: to read all settings for every value takes long.
    """
    values, _ = recipe.read("digits")
    *path, last = key.split(".")
    inner = values
    for part in path:
        inner = inner.setdefault(part, {})
    inner[last] = "@"
    return yaml.safe_dump(values)


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("section", dict.fromkeys(key.partition(".")[0] for key in WRONG))
def test_a_value_that_does_not_fit_is_named_with_its_key(tmp_path: Path, section: str) -> None:
    """In a file, and on the command line as far as a value can be given there."""
    accepted = []
    for key in (key for key in WRONG if key.partition(".")[0] == section):
        for text in WRONG[key]:
            (tmp_path / "r.yaml").write_text(_marked(key).replace("'@'", text))
            places: list[tuple[str, list[str]]] = [(str(tmp_path / "r.yaml"), [])]
            if (key, text) not in _NAMES:
                places.append(("digits", [f"{key}={text}"]))
            for name, change in places:
                try:
                    with on_command_line():
                        load(name, change)
                except InputError as refused:
                    line = str(refused)
                else:
                    accepted.append(f"{key}={text} of {name}")
                    continue
                case = f"{key}={text} of {name}: {line}"
                unknown = line.startswith("unknown ")
                assert key in line or (key.endswith(".name") and unknown), case
                assert section in line or unknown, case
                check_wording(line)
    assert not accepted


@pytest.mark.parametrize("name", methods.names())
def test_every_setting_of_a_method_is_checked(name: str) -> None:
    for key in methods.resolve(name, {}):
        for wrong in (object(), [[]]):
            with pytest.raises(InputError) as refused:
                resolve(SMALLEST | {"method": {"name": name, key: wrong}}, Path("runs"))
            assert f"method.{key}" in str(refused.value)


def check_wording(line: str) -> None:
    """Messages are one short line in words that are not Python's."""
    assert "\n" not in line
    assert len(line) < 500, line
    for word in ("None", "True", "class '", "pydantic", "constrained", "function", "Value error"):
        assert word not in line, line


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"epochs": None}}, "train.epochs: a whole number is needed, got null"),
        ({"train": {"lr": True}}, "train.lr: a number is needed, got true"),
        ({"train": 5}, "train holds settings, got 5; set them as in train.epochs=..."),
        ({"method": "kd"}, "method holds settings, got 'kd'; set them as in method.name=..."),
        ({"student": {}}, "student.name is missing; set it"),
        (
            {"data": {"name": "digits", "classes": [["a"]]}},
            "data.classes: how many classes, 2 or more, or a list of their names is needed, "
            "got [['a']]",
        ),
        ({"data": {"name": "digits", 3: 1}}, "data[3]: a key must be text; put it in quotes"),
        (
            {"student": {"name": "resnet8", "std": [0.5, 0]}},
            "student.std[1]: input should be greater than 0, got 0",
        ),
        (
            {"train": {"optimizer": "sgdd"}},
            "train.optimizer: unknown optimizer 'sgdd'; did you mean 'sgd' or 'sgdw'?",
        ),
        (
            {"out": 2024},
            "out: a path is needed, got 2024; put it in quotes if that is its name, "
            "as in out: '2024'",
        ),
        ({"out": 10**999}, "out: a path is needed, got a very long number"),
        (
            {"epochs": 3},
            "unknown setting 'epochs'; did you mean 'teacher.epochs' or 'train.epochs'?",
        ),
        (
            {"trian": {"lr": 1}},
            "unknown setting 'trian'; did you mean 'train'? "
            "known: data, method, out, seed, student, teacher, train",
        ),
        (
            {"teacher": None},
            "the method 'dskd' needs a teacher; give one, as in teacher.name=resnet20",
        ),
        (
            {"train": {"epochs": 2, "warmup": 2}},
            "train.warmup: 2 epochs of warmup leave nothing of the 2 epochs of train.epochs; make "
            "it smaller",
        ),
        (
            {"train": {"epochs": 4, "warmup": 2}, "teacher": {"name": "resnet8", "epochs": 2}},
            "train.warmup: 2 epochs of warmup leave nothing of the 2 epochs of teacher.epochs; "
            "make it smaller",
        ),
        (
            {"data": {"name": "digits", "cache_dir": "run/cache"}, "out": "run"},
            "data.cache_dir=run/cache is in the folder of the run, run; choose a folder outside "
            "of it, which other runs can use, too",
        ),
        (
            {"train": {"nesterov": True, "momentum": 0}},
            "train.nesterov needs train.momentum above 0",
        ),
        (
            {"teacher": {"name": "resnet8", "views": 4}},
            "teacher.views needs teacher.cache=features",
        ),
        (
            {"teacher": {"name": "resnet8", "cache": "logits", "views": 4}},
            "teacher.views needs teacher.cache=features",
        ),
        (
            {"teacher": {"name": "resnet8", "cache_dir": "outputs"}},
            "teacher.cache_dir needs teacher.cache=features or teacher.cache=logits",
        ),
    ],
)
def test_messages_read_well(values: dict[str, Any], message: str) -> None:
    with on_command_line(), pytest.raises(InputError) as refused:
        resolve(SMALLEST | values, Path("runs"))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": {"name": "resnet8", "epochs": 2, "checkpoint": "t.safetensors"}},
        {"teacher": {"name": "resnet8", "epochs": 2}, "method": {"name": "ce"}},
    ],
)
def test_the_epochs_of_a_teacher_that_is_not_trained_limit_nothing(changes: dict[str, Any]) -> None:
    resolve(SMALLEST | {"train": {"epochs": 4, "warmup": 2}} | changes, Path("runs"))


def test_long_values_are_shortened() -> None:
    for value in ("x" * 10_000, ["x"] * 10_000, {"x" * i: i for i in range(1000)}, 10**400):
        with pytest.raises(InputError) as refused:
            resolve(SMALLEST | {"train": {"epochs": value}}, Path("runs"))
        assert len(str(refused.value)) < 300


# ---- whatever else

KEYS = st.sampled_from(
    [*known_keys(Recipe), "method.temperature", "method.supervise", "method.preset", "method"]
)
SECTIONS = st.sampled_from(["data", "student", "teacher", "method", "train", "seed", "out"])
NAMES = (
    st.sampled_from([part for key in known_keys(Recipe) for part in key.split(".")])
    | st.sampled_from(
        ["preset", "options", "epoch", "self", "model_config", "plain", "", "temperature"]
    )
    | st.text(max_size=5)
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["digits", "resnet8", "kd", "dskd", "sgd", "0.5", "~", "~nobody/x", b"x", 4.0]
    )
    | st.dates()
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


def tried(values: Any) -> Recipe | InputError:
    try:
        return resolve(values, Path("runs"))
    except InputError as error:
        return error


def resolves_or_refuses(values: Any) -> None:
    outcome = tried(values)
    if isinstance(outcome, Recipe):
        assert resolve(outcome.plain(), Path("other")) == outcome
    else:
        assert re.fullmatch(r"\S[^\n]*", str(outcome))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(SECTIONS, st.dictionaries(NAMES, JUNK, max_size=3) | JUNK, max_size=4))
@example({"method": {"preset": ["paper"]}})
@example({"seed": 2**63})
@example({"seed": 10**5000})
@example({"out": "~\0"})
def test_whatever_is_in_a_recipe_it_resolves_or_is_refused(values: dict[str, Any]) -> None:
    resolves_or_refuses(values)
    merged = {
        key: SMALLEST.get(key, {}) | value if isinstance(value, dict) else value
        for key, value in values.items()
    }
    resolves_or_refuses(SMALLEST | merged)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(KEYS | NAMES, st.text(max_size=12) | JUNK.map(lambda value: yaml.safe_dump(value)))
@example("train.epochs", "&a [*a]")
@example("seed", "2020-13-45")
@example("seed", "9" * 5000)
@example("a.b", "[" * 3000)
def test_whatever_is_on_the_command_line_it_resolves_or_is_refused(key: str, text: str) -> None:
    for override in (f"{key}={text}", f"{key}{text}", text):
        with contextlib.suppress(InputError):
            load("digits", [override])


# ---- from Python


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"student": 5}, ["student", "int"]),
        ({"teacher": None}, ["needs a teacher", 'teacher={"name": "resnet20"}']),
        ({"teacher": 5}, ["teacher", "int"]),
        ({"data": [1]}, ["training images", "list", "not a pair (image, label)"]),
        ({"method": 4.0}, ["method", "float"]),
        ({"method": {"name": "kd", "temprature": 1}}, ["'method.temperature'"]),
        ({"train": 5}, ["train holds settings"]),
        ({"train": {"epoch": 5}}, ["'train.epochs'"]),
        ({"train": ["epochs"]}, ["train holds settings"]),
        ({"seed": "one"}, ["seed", "'one'"]),
        ({"out": 5}, ["out", "path"]),
        ({"student": {"module": "resnet8"}}, ["student", "module", "str"]),
        ({"student": {}}, ["student.name"]),
        ({"student": {"name": ["resnet8"]}}, ["student.name", "text"]),
        ({"student": "resnet9"}, ["'resnet9'", "'resnet8'"]),
        ({"data": {"dataset": 5}}, ["data.dataset", "int"]),
        ({"data": {"name": "digits", "clases": 2}}, ["'data.classes'"]),
    ],
)
def test_the_python_calls_refuse_in_one_line_too(
    arguments: dict[str, Any],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[Callable[[dict[str, Any]], object]] = [
        lambda given: dskd.distill(**{"teacher": "resnet14"} | given)
    ]
    if not arguments.keys() & {"teacher", "method"}:
        calls.append(lambda given: dskd.train(**given))
    for call in calls:
        with pytest.raises(InputError) as refused:
            call({"student": "resnet8", "data": "digits"} | arguments)
        assert all(word in str(refused.value) for word in words), refused.value
    assert not list(tmp_path.iterdir())


def test_images_with_labels_out_of_range_are_refused() -> None:
    data = make_dataset()
    with pytest.raises(InputError, match="labels out of range in the training split: 0 to 3"):
        dataclasses.replace(data, classes=data.classes[:3])


def test_a_run_s_folder_from_python_is_named_by_its_parts() -> None:
    values = {"student": {"name": "<Net>"}, "data": {"name": "digits"}, "method": {"name": "ce"}}
    plan = recipe.resolve(values, Path("runs/Net-digits"))
    assert plan.out == Path("runs/Net-digits/ce-seed0")


def test_another_method_keeps_the_settings_that_both_have() -> None:
    method = recipe.load("cifar100/vgg13-vgg8", ["method.name=kd"]).method
    assert method.options == {"temperature": 4.0, "ce": 1.0, "kd": 1.0, "standardize": False}
    assert recipe.load("digits", ["method.name=ce"]).method.options == {"ce": 1.0}
    with pytest.raises(InputError, match=r"unknown setting 'method\.beta'"):
        recipe.load("digits", ["method.name=kd", "method.beta=2"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipe.shipped() if name != "digits"])
def test_every_shipped_pair_takes_a_step(name: str) -> None:
    """Teacher, student and branches fit each other, at the recipe's own size of image."""
    plan = recipe.load(name)
    size = plan.data.size or {"cifar100": 32, "tiny_imagenet": 64}[plan.data.name]
    data = make_dataset(classes=3, per_class=1, size=size)
    prepare(plan, data, UserObjects(), torch.device("cpu"))


@pytest.mark.parametrize("teacher", ["teacher.name=resnet14", "teacher={name: resnet14}"])
def test_a_teacher_that_is_given_to_a_method_without_one_is_refused(teacher: str) -> None:
    alone = load_for_a_run("digits", ["method.name=ce"])
    assert alone.teacher, "the recipe may have one for other methods"
    assert load_for_a_run("digits", ["method.name=ce", "teacher=null"]).teacher is None
    with pytest.raises(InputError, match=r"^teacher.* has no effect: the method 'ce' learns from"):
        load_for_a_run("digits", ["method.name=ce", teacher])
    with pytest.raises(InputError, match=r"^teacher has no effect: the method 'ce' learns from"):
        dskd.distill(recipe="digits", method="ce", teacher="resnet14")


def test_training_settings_of_a_trained_teacher_are_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "distill", lambda *_, **__: None)
    trained = "teacher.checkpoint=teacher.safetensors"
    said = (
        "teacher.{} is not used, since the teacher of teacher.checkpoint is trained already; drop "
        "one of them"
    )
    load_for_a_run("digits", [trained])  # the recipe has epochs of a teacher that it trains
    load_for_a_run("digits", ["teacher.epochs=3"])
    assert not caplog.messages
    load_for_a_run("digits", [trained, "teacher.epochs=3", "teacher.lr=0.1"])
    assert caplog.messages == [said.format("epochs"), said.format("lr")]
    caplog.clear()
    teacher = {"name": "resnet14", "checkpoint": "teacher.safetensors", "epochs": 3}
    dskd.distill(recipe="digits", teacher=teacher)
    assert caplog.messages == [said.format("epochs")]
    caplog.clear()
    load_plan("digits", [trained, "teacher.epochs=3"], ["kd"], None, seeds=1)
    assert caplog.messages == [said.format("epochs")]


@pytest.mark.parametrize("key", ["student", "teacher", "data", "method", "train"])
def test_a_file_with_a_word_in_place_of_settings_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALLEST | {key: "word"}))
    with pytest.raises(InputError, match=f"^{key} holds settings, as in .*; got 'word'$"):
        dskd.distill(recipe=path, student={"pretrained": False}, method="kd")
