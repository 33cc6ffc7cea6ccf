"""Reports about teachers that are not what the user thinks they are."""

from __future__ import annotations

import html
import json
import logging
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import dskd
from dskd import methods
from dskd.config.recipe import resolve
from dskd.config.schema import ModelSettings, TeacherSettings
from dskd.data import Dataset, Split
from dskd.data.loader import DataLoaders
from dskd.engine.build_model import build_model
from dskd.engine.natural_order import natural_order
from dskd.engine.teacher_accuracy import (
    examine_teacher,
    likely_order,
    near_chance,
    surely_near_chance,
)
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, Stopped
from dskd.models.staged_model import StagedModel
from dskd.models.zoo import build
from dskd.storage.weights import write_weights
from dskd.teacher.frozen import FrozenTeacher
from tests.builders import make_dataset, stop_at
from tests.report.report_runs import reported

DATA = make_dataset(classes=4, per_class=8)
IMAGES = DATA.test.images[:5]


def student_file(path: Path, **changes: Any) -> Path:
    """A file as a run writes it, of a model for the classes of DATA."""
    facts = {
        "model": "resnet8",
        "options": {},
        "classes": list(DATA.classes),
        "shape": [3, 16, 16],
        "method": "ce",
        "deploy_config": {},
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    torch.manual_seed(3)
    path.write_bytes(write_weights(build("resnet8", num_classes=4), facts | changes))
    return path


def teacher(path: Path, data: Dataset = DATA, **settings: Any) -> StagedModel:
    return build_model(TeacherSettings(name="resnet8", checkpoint=path, **settings), data, 0).eval()


def test_a_student_as_a_teacher_keeps_its_statistics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = student_file(tmp_path / "s.safetensors")
    assert teacher(path).mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert teacher(path).std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert not caplog.records
    assert teacher(path, mean=[0.5] * 3).mean.flatten().tolist() == [0.5] * 3
    assert "teacher.mean=[0.5, 0.5, 0.5] is used, but" in caplog.text


def test_classes_in_another_order_are_mapped_by_name(tmp_path: Path) -> None:
    path, order = student_file(tmp_path / "s.safetensors"), [2, 0, 3, 1]
    turned = replace(DATA, classes=tuple(DATA.classes[k] for k in order))
    plain, mapped = teacher(path), teacher(path, turned)
    assert torch.equal(mapped(IMAGES).logits, plain(IMAGES).logits[:, order])
    output, linear = mapped(IMAGES), mapped.linear_classifier
    assert linear is not None
    torch.testing.assert_close(linear(output.pooled), output.logits)
    assert FrozenTeacher(mapped).fingerprint() != FrozenTeacher(plain).fingerprint()


def test_logits_of_other_classes_are_ignored_and_both_lists_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    path = student_file(tmp_path / "s.safetensors", classes=["cat", "dog", "cow", "hen"])
    others = teacher(path)
    assert re.search(r"has the classes \['cat'.*made has \['class0'", caplog.text)
    assert others.other_classes == 4
    assert not others(IMAGES).logits.any()


def test_other_channels_are_refused(tmp_path: Path) -> None:
    path = student_file(tmp_path / "s.safetensors", shape=[1, 16, 16])
    with pytest.raises(InputError, match="images with 1 channels, and the images of made have 3"):
        teacher(path)


def student(path: Path, data: Dataset) -> StagedModel:
    return build_model(ModelSettings(name="resnet8", checkpoint=path), data, 7)


def test_a_student_starts_from_weights(tmp_path: Path) -> None:
    path = student_file(tmp_path / "s.safetensors")
    found, expected = student(path, DATA).module.state_dict(), teacher(path).module.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("classes", [["cat", "dog", "cow", "hen"], None])
def test_a_classifier_of_other_classes_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, classes: list[str] | None
) -> None:
    path = student_file(tmp_path / "s.safetensors", **({"classes": classes} if classes else {}))
    data = DATA if classes else make_dataset(classes=6)
    fresh = build_model(ModelSettings(name="resnet8"), data, 7).module.state_dict()
    with caplog.at_level(logging.INFO, "dskd"):
        found = student(path, data).module.state_dict()
    assert torch.equal(found["fc.weight"], fresh["fc.weight"])
    assert not torch.equal(found["conv1.weight"], fresh["conv1.weight"])
    assert "the classifier (fc.bias, fc.weight) is left out" in caplog.text


def test_a_key_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    values = {"data": {"name": "digits"}, "student": {"name": "resnet8", "checkpoint_key": "ema"}}
    with pytest.raises(InputError, match=r"student\.checkpoint_key does nothing without"):
        resolve(values | {"method": {"name": "ce"}}, tmp_path)


# Outputs that hold logits


@dataclass
class Output:
    logits: Tensor
    features: Tensor


class Named(NamedTuple):
    logits: Tensor
    aux_logits: Tensor | None


class Gives(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))

    def forward(self, images: Tensor) -> Any:
        logits = self.net(images)
        return {
            "tensor": logits,
            "object": Output(logits, images.flatten(1)),
            "mapping": OrderedDict(logits=logits, cls_logits=logits + 1),
            "named tuple": Named(logits, logits + 1),
            "tuple": (logits, images, None),
            "list": [logits],
            "another name": {"out": logits, "map": images},
            "two": (logits, images.flatten(1)),
        }[self.kind]


def seen(kind: str) -> StagedModel:
    torch.manual_seed(0)
    return StagedModel(Gives(kind), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
    "kind", ["object", "mapping", "named tuple", "tuple", "list", "another name"]
)
def test_logits_are_taken_from_outputs(kind: str) -> None:
    assert torch.equal(seen(kind)(IMAGES).logits, seen("tensor")(IMAGES).logits)


def test_outputs_with_several_logits_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"output 0 \[5, 4\], output 1 \[5, 768\], not logits"):
        seen("two")(IMAGES)


# The accuracy of the teacher


def test_a_teacher_near_chance_is_told_from_a_weak_one() -> None:
    labels, draw = torch.arange(1000) % 10, torch.Generator().manual_seed(0)
    guesses = torch.randint(10, (1000,), generator=draw)
    assert near_chance(guesses, labels, 10)
    assert near_chance(torch.full_like(labels, 3), labels, 10)
    weak = torch.where(torch.rand(1000, generator=draw) < 0.1, labels, guesses)
    assert not near_chance(weak, labels, 10)
    assert not near_chance(labels[:12], labels[:12], 10)


def test_another_order_of_the_classes_is_found_and_noise_is_none() -> None:
    labels, draw = torch.arange(1000) % 10, torch.Generator().manual_seed(0)
    order = torch.randperm(10, generator=draw)
    noise = torch.randint(10, (1000,), generator=draw)
    turned = torch.where(torch.rand(1000, generator=draw) < 0.6, order[labels], noise)
    assert likely_order(turned, labels, 10) == order.tolist()
    assert likely_order(noise, labels, 10) is None
    assert likely_order(labels, labels, 10) is None


AIRCRAFT = ["A300", "ATR", "CRJ", "Cessna", "DC-10", "DC-3", "F-16", "Hawk", "Il-76", "MD-11"]


class Recites(nn.Module):
    """Predicts the given classes, whatever it sees."""

    def __init__(self, predictions: Tensor, classes: int) -> None:
        super().__init__()
        self.left = nn.functional.one_hot(predictions, classes).float()

    def forward(self, images: Tensor) -> Tensor:
        logits, self.left = self.left[: len(images)], self.left[len(images) :]
        return logits


def class_order(predictions: Tensor, labels: Tensor, checkpoint: Path) -> str:
    """What is said about the class order of a teacher of AIRCRAFT with these predictions."""
    settings = TeacherSettings(name="resnet8", checkpoint=checkpoint, mean=(0.5,), std=(0.5,))
    data = make_dataset(classes=10, per_class=2)
    test = Split(data.test.images_at(labels), labels)
    loaders = DataLoaders(replace(data, classes=tuple(AIRCRAFT), test=test), torch.device("cpu"))
    module = Recites(predictions, 10)
    teacher = FrozenTeacher(StagedModel(module, mean=(0.5,) * 3, std=(0.5,) * 3))
    return examine_teacher(teacher, loaders, settings).order


def test_the_order_of_timm_is_found_though_most_classes_keep_their_place(tmp_path: Path) -> None:
    labels, draw = torch.arange(1000) % 10, torch.Generator().manual_seed(0)
    order = torch.tensor(natural_order(AIRCRAFT))
    assert order.tolist() == [0, 1, 3, 2, 5, 4, 6, 7, 8, 9]
    noise = torch.randint(10, (1000,), generator=draw)
    good = torch.rand(1000, generator=draw) < 0.9
    timms = torch.where(good, order[labels], noise)
    assert likely_order(timms, labels, 10) is None, "it is not twice as accurate"
    path = tmp_path / "teacher.pth"
    said = class_order(timms, labels, path)
    assert "another order, as timm sorts folders (without case, and numbers by size): for" in said
    assert "for 'CRJ' it predicts class 3, which is 'Cessna' here; give the classes in its" in said
    assert not class_order(torch.where(good, labels, noise), labels, path)
    assert not class_order(noise, labels, path)
    rare = torch.cat([labels, torch.full((200,), 2)])
    assert not class_order(torch.full_like(rare, 3), rare, path), "one class makes no order"


@pytest.mark.parametrize(("classes", "enough", "few"), [(2, 120, 60), (10, 30, 5), (100, 60, 10)])
def test_a_refusal_takes_enough_images(classes: int, enough: int, few: int) -> None:
    def surely(images: int) -> bool:
        labels = torch.arange(images) % classes
        return surely_near_chance(torch.zeros_like(labels), labels, classes)

    assert surely(enough)
    assert not surely(few)


def test_a_teacher_that_is_weak_or_may_be_decent_is_not_surely_near_chance() -> None:
    labels, draw = torch.arange(10000) % 100, torch.Generator().manual_seed(0)
    guesses = torch.randint(100, (10000,), generator=draw)
    weak = torch.where(torch.rand(10000, generator=draw) < 0.03, labels, guesses)
    assert surely_near_chance(guesses, labels, 100)
    assert not surely_near_chance(weak, labels, 100)
    rare = torch.zeros(500, dtype=torch.long)
    rare[:5] = 1  # one in a hundred: 99 % accuracy is a guess, and it is also that of a good model
    assert near_chance(torch.zeros_like(rare), rare, 2)
    assert not surely_near_chance(torch.zeros_like(rare), rare, 2)


class ByTint(nn.Module):
    """Tells the classes of DATA apart by their tint, and names them in an order of its own."""

    def __init__(self, order: list[int], centres: Tensor) -> None:
        super().__init__()
        self.order, self.conv = order, nn.Conv2d(3, 8, 3)
        self.centres = nn.Buffer(centres)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        level = images.mean((1, 2, 3))[:, None] + 0 * self.conv(images).mean((1, 2, 3))[:, None]
        logits: Tensor = -self.scale * (level - self.centres).square()[:, self.order]
        return logits


def by_tint(order: list[int], data: Dataset) -> ByTint:
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    level = ((data.train.images / 255 - mean) / std).mean((1, 2, 3))
    centres = [level[data.train.labels == label].mean() for label in range(len(data.classes))]
    return ByTint(order, torch.stack(centres))


MANY = make_dataset(classes=4, per_class=20)


def distilled(tmp_path: Path, module: nn.Module, method: Any = "kd", **teacher: Any) -> Any:
    return dskd.distill(
        student="resnet8",
        teacher={"module": module, "stages": ["conv"], **teacher},
        data=MANY,
        method=method,
        train={"epochs": 1, "batch_size": 40},
        out=tmp_path / "run",
    )


def test_a_teacher_with_its_classes_in_another_order_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    right = (
        r"the teacher <ByTint> is no better than a guess: its test accuracy is 0\.00 % "
        r"\(20 images\); "
        r"likely cause: its classes are in another order: for 'class0' it predicts class 3, which "
        r"is 'class3' here; give the classes in its order with data\.classes, or set "
        r'teacher={..., "trust": True} to use it all the same$'
    )
    with pytest.raises(InputError, match=right):
        distilled(tmp_path, by_tint([1, 2, 3, 0], MANY))
    assert not list(tmp_path.iterdir())
    replaced = tmp_path / "run"
    assert distilled(tmp_path, by_tint([0, 1, 2, 3], MANY)).teacher_accuracy == 100
    before = {path: path.read_bytes() for path in replaced.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="no better than a guess"):
        dskd.distill(
            student="resnet8",
            teacher=by_tint([1, 2, 3, 0], MANY),
            data=MANY,
            method="kd",
            out=replaced,
            overwrite=True,
        )
    assert before == {path: path.read_bytes() for path in replaced.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_trusted_teacher_is_warned_about_and_its_accuracy_is_in_run_and_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = by_tint([1, 2, 3, 0], MANY)
    result = distilled(tmp_path, module, trust=True)
    assert result.teacher_accuracy == 0
    assert "does not fit the classes: likely cause: its classes are in another order" in caplog.text
    right = {"name": "<ByTint>", "test_accuracy": 0.0, "test_images": 20, "near_chance": True}
    assert json.loads((result.path / "teacher_accuracy.json").read_text()) == right
    given = UserObjects(data=MANY, teacher=module)
    page = reported([result.path], tmp_path / "report.html", given)
    text = html.unescape(page.read_text())
    assert "The teacher <ByTint> is no better than a guess: it is right on 0.00 % of the 20" in text


@pytest.mark.slow
def test_the_teachers_accuracy_is_written_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 0, 0)
    with pytest.raises(Stopped):
        distilled(tmp_path, by_tint([0, 1, 2, 3], MANY))
    right = {"name": "<ByTint>", "test_accuracy": 100.0, "test_images": 20, "near_chance": False}
    assert json.loads((tmp_path / "run/teacher_accuracy.json").read_text()) == right


@pytest.mark.slow
def test_a_teacher_that_the_run_trained_badly_needs_more_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dskd.distill(
        student="resnet8",
        teacher={"name": "resnet14", "epochs": 1, "lr": 1e-9},
        data=MANY,
        train={"epochs": 1, "batch_size": 40},
        out=tmp_path / "run",
    )
    (line,) = [text for text in caplog.messages if "no better than a guess" in text]
    assert "too little training; raise teacher.epochs" in line
    assert "another task" not in line


def test_a_method_that_compares_features_alone_takes_a_teacher_of_other_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match="no better than a guess"):
        distilled(tmp_path, by_tint([1, 2, 3, 0], MANY), {"name": "nst"})
    distilled(tmp_path, by_tint([1, 2, 3, 0], MANY), {"name": "nst", "kd": 0.0})
    assert "does not fit the classes" in caplog.text


@pytest.mark.parametrize(
    ("name", "settings", "right"),
    [
        ("ce", {}, False),
        ("byot", {}, False),
        ("kd", {}, True),
        ("fitnet", {"kd": 0}, False),
        ("rkd", {"preset": "literature"}, False),
        ("simkd", {"preset": "literature"}, True),
        ("srrl", {"kd": 0}, True),
        ("catkd", {"kd": 0}, True),
        ("sskd", {"kd": 0}, True),
        ("sskd", {"kd": 0, "tf": 0}, False),
        ("wkd", {"kd": 0, "feature": 1}, False),
        ("wkd", {}, True),
        ("dskd", {"preset": "paper"}, True),
        ("dskd", {"kd": 0, "alpha": 0}, False),
        ("dskd", {"kd": 0, "alpha": 0, "classifier": "teacher"}, True),
    ],
)
def test_which_methods_read_the_teachers_classes(
    name: str, settings: dict[str, Any], right: bool
) -> None:
    assert methods.find(name).reads_classes(methods.resolve(name, settings)) is right


def test_a_comparison_refuses_a_teacher_before_anything_is_written(tmp_path: Path) -> None:
    def compare(*names: str) -> None:
        dskd.compare_methods(
            student="resnet8",
            teacher=by_tint([1, 2, 3, 0], MANY),
            data=MANY,
            methods=names,
            seeds=1,
            train={"epochs": 1, "batch_size": 40},
            out=tmp_path / "compared",
        )

    with pytest.raises(InputError, match="no better than a guess"):
        compare("ce", "kd")
    assert not list(tmp_path.iterdir())
    compare("ce")


def test_trust_without_a_given_teacher_is_refused(tmp_path: Path) -> None:
    values = {"data": {"name": "digits"}, "student": {"name": "resnet8"}}
    taught = {"teacher": {"name": "resnet8", "trust": True}}
    with pytest.raises(
        InputError, match=r"teacher\.trust does nothing without teacher\.checkpoint"
    ):
        resolve(values | taught, tmp_path)


@pytest.mark.slow
def test_the_teacher_is_evaluated_before_the_first_step_and_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    module = build("resnet8", num_classes=4)
    with caplog.at_level(logging.INFO, "dskd"):
        result = dskd.distill(
            student="resnet8",
            teacher={"module": module, "trust": True},
            data=DATA,
            method="kd",
            train={"epochs": 1, "batch_size": 16},
            out=tmp_path / "run",
        )
    lines = [r.getMessage() for r in caplog.records if "has a test accuracy" in r.getMessage()]
    assert lines == [
        f"the teacher <ResNet> has a test accuracy of {result.teacher_accuracy:.2f} % (20 images)"
    ]
