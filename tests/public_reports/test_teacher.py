"""Reports about teachers that are not what the user thinks they are."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import dskd
from dskd.config.recipe import resolve
from dskd.config.schema import ModelSettings, TeacherSettings
from dskd.data import Dataset
from dskd.engine.build import build_model
from dskd.engine.teacher_accuracy import likely_order, near_chance
from dskd.errors import InputError
from dskd.models.staged_model import StagedModel
from dskd.models.zoo import build
from dskd.storage.weights import write_weights
from dskd.teacher.frozen import FrozenTeacher
from tests.conftest import make_dataset

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


def test_other_classes_are_refused_with_both_lists(tmp_path: Path) -> None:
    path = student_file(tmp_path / "s.safetensors", classes=["cat", "dog", "cow", "hen"])
    with pytest.raises(InputError, match=r"has the classes \['cat'.*made has \['class0'"):
        teacher(path)


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


@pytest.mark.slow
def test_the_teacher_is_evaluated_before_the_first_step_and_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    module = build("resnet8", num_classes=4)
    with caplog.at_level(logging.INFO, "dskd"):
        result = dskd.distill(
            student="resnet8",
            teacher=module,
            data=DATA,
            method="kd",
            train={"epochs": 1, "batch_size": 16},
            out=tmp_path / "run",
        )
    lines = [r.getMessage() for r in caplog.records if "test accuracy" in r.getMessage()]
    assert lines == [
        f"the teacher <ResNet> has a test accuracy of {result.teacher_accuracy:.2f} % (20 images)"
    ]
