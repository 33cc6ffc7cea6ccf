"""Runs on mixed images: student and teacher see the same, and every method learns or refuses."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dskd import methods
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data.loader import Batch
from dskd.data.mixing import draw_mix
from dskd.engine import run
from dskd.engine.mixing import Mixing
from dskd.engine.step import train_step
from dskd.errors import InputError, Stopped
from dskd.methods.contracts import TeacherNeeds
from dskd.models.output import ModelOutput
from tests.builders import stop_at
from tests.engine.test_targets import a_batch, made

REFUSING = ("crd", "dkd", "nkd", "ofa", "sskd", "wkd")
"""Methods that refuse mixed images; there may be more."""
MIXING = Mixing(seed=0, classes=4, mixup=0.4, cutmix=1.0, probability=1.0)


def test_each_image_is_mixed_with_the_one_before_it() -> None:
    batch = a_batch(7)
    mixed = MIXING(batch)
    mix = draw_mix(0, batch.epoch, batch.step, (16, 16), mixup=0.4, cutmix=1.0)
    assert mix is not None
    assert torch.equal(mixed.images, mix.images(batch.images, batch.images.roll(1, 0)))
    expected = mix.targets(batch.labels, batch.labels.roll(1, 0), 4)
    assert torch.equal(mixed.targets, expected)
    assert mixed.images.stride() == batch.images.stride()
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(7))
    unclear = mix.share == 0.5
    assert unclear or torch.equal(mixed.labels, mixed.targets.argmax(1))


@pytest.mark.parametrize(
    "name",
    [one for one in methods.names() if one not in REFUSING and not methods.find(one).hard_labels],
)
def test_a_method_that_does_not_refuse_mixed_images_reads_their_soft_targets_alone(
    name: str,
) -> None:
    mixed = MIXING(a_batch())
    other = replace(mixed, labels=(mixed.labels + 1) % 4)
    found = []
    method, outputs = made(name)
    assert not method.hard_labels
    for batch in (mixed, other):
        one = copy.deepcopy(method)  # a step may change it
        found.append(one(batch, outputs(batch, method.needs)).losses)
    for loss, value in found[0].items():
        assert value.isfinite()
        assert torch.equal(value, found[1][loss]), loss


@pytest.mark.parametrize("name", REFUSING)
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_method_that_needs_one_class_for_each_image_refuses_in_a_line(
    tmp_path: Path, name: str, kind: str
) -> None:
    settings = [f"train.{kind}=0.5", "data.fraction=0.1", "student.name=resnet8"]
    out = tmp_path / "run"
    refusing = recipe.load("digits", [*settings, f"method.name={name}", f"out={out}"])
    with pytest.raises(InputError, match=f"train.{kind} gives images of two classes") as refused:
        run.distill(refusing)
    assert "\n" not in str(refused.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lskd", {"base": "dkd"}),
        ("sdd", {"base": "nkd"}),
        ("sdd", {"form": "code"}),
        ("dskd", {"deep_loss": "dkd"}),
        ("dskd", {"prediction_loss": "dkd"}),
    ],
)
def test_settings_that_split_off_the_class_need_it(name: str, settings: dict[str, Any]) -> None:
    assert made(name, **settings)[0].hard_labels


def test_the_teacher_sees_the_mixed_images_of_the_student() -> None:
    method, outputs = made("kd")
    seen: list[torch.Tensor] = []

    def teacher(batch: Batch, needs: TeacherNeeds) -> ModelOutput | None:
        seen.append(batch.images)
        return outputs(batch, needs)

    student_s: list[torch.Tensor] = []
    forward = method.forward

    def student(batch: Batch, taught: Any) -> Any:
        student_s.append(batch.images)
        return forward(batch, taught)

    method.forward = student  # type: ignore[assignment,method-assign]
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    batch = MIXING(a_batch())
    train_step(method, teacher, batch, optimizer, "float32", parts=2)
    assert len(seen) == len(student_s) == 2
    for one, other in zip(seen, student_s, strict=True):
        assert one is other
    assert torch.equal(torch.cat(seen), batch.images)


def mixed_run(out: Path, *changes: str) -> Recipe:
    settings = ["data.fraction=0.1", "train.epochs=3", "train.batch_size=32", "teacher.epochs=1"]
    mixing = ["train.mixup=0.4", "train.cutmix=1", "train.mix_probability=0.8"]
    small = ["student.name=resnet8", "teacher.name=resnet8", "method.name=kd", f"out={out}"]
    return recipe.load("digits", [*settings, *mixing, *small, *changes])


@pytest.mark.slow
def test_a_mixed_run_resumes_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ["train.label_smoothing=0.1", "train.accumulate=2"]
    whole = run.distill(mixed_run(tmp_path / "whole", *changes))
    assert 0 <= whole.test_accuracy <= 100
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 0)
        with pytest.raises(Stopped):
            run.distill(mixed_run(tmp_path / "parts", *changes))
    run.distill(mixed_run(tmp_path / "parts", *changes), resume=True)
    files = [tmp_path / part / "student.safetensors" for part in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("cache", ["logits", "features"])
def test_a_cache_of_teacher_outputs_is_refused(tmp_path: Path, cache: str) -> None:
    with pytest.raises(InputError, match="mixes images anew in every step"):
        mixed_run(tmp_path, f"teacher.cache={cache}")


def test_a_probability_without_mixing_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.mix_probability needs"):
        recipe.load("digits", ["train.mix_probability=0.5"])
