"""Label smoothing and class weights, in every method's cross-entropy with the labels."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dskd import losses, methods
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.engine import run
from dskd.engine.step import train_step
from dskd.engine.targets import SoftTargets, balanced
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.teacher.outputs import TeacherOutputs
from tests.builders import make_dataset, make_pair, staged
from tests.methods import declared
from tests.runtime.test_distributed import without_batchnorm

DATA = make_dataset(classes=4, per_class=8, size=16)
CPU = torch.device("cpu")
LABELS = torch.tensor([0, 3, 1, 1, 2])
LOGITS = torch.linspace(-2, 2, 20).view(5, 4).sin()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_is_that_of_torch(smoothing: float) -> None:
    found = losses.ce(LOGITS, SoftTargets(4, smoothing).of(LABELS))
    expected = F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)


def test_class_weights_are_those_of_torch_but_for_the_mean_over_images() -> None:
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    found = losses.ce(LOGITS, SoftTargets(4, 0.0, weights).of(LABELS), reduction="none")
    expected = F.cross_entropy(LOGITS, LABELS, weight=weights, reduction="none")
    torch.testing.assert_close(found, expected)
    soft = SoftTargets(4, 0.2).of(LABELS)
    torch.testing.assert_close(
        losses.ce(LOGITS, SoftTargets(4, 0.2, weights).of(LABELS)),
        F.cross_entropy(LOGITS, soft, weight=weights),
    )


def test_balanced_classes_all_count_the_same() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = balanced(labels, 4)
    assert weights[labels].mean().item() == pytest.approx(1.0)
    counted = [float(weights[labels][labels == label].sum()) for label in (0, 1, 3)]
    assert counted == pytest.approx([10 / 3] * 3)
    assert weights[2] == 0


def test_labels_alone_stay_as_they_are() -> None:
    batch = a_batch()
    assert SoftTargets(4)(batch) is batch
    assert batch.targets is batch.labels


def a_batch(size: int = 8) -> Batch:
    plan = draw_plan(0, 0, len(DATA.train), 2, True)
    return next(MemoryLoader(DATA.train, CPU).batches(plan, size))


def made(name: str, **settings: Any) -> tuple[Method, TeacherOutputs]:
    settings = declared.small(name) | settings  # imports a test, which may draw numbers
    torch.manual_seed(0)
    teacher = staged("resnet14") if methods.find(name).needs_teacher else None
    pair, frozen = make_pair(staged(), teacher, DATA)
    method = methods.find(name)(pair, **settings).train()
    outputs = TeacherOutputs(frozen)
    plan = draw_plan(0, 0, len(DATA.train), 2, True)
    batches = list(MemoryLoader(DATA.train, CPU).batches(plan, 8))
    epoch = [(batch, outputs(batch, method.needs)) for batch in batches]
    method.prepare(lambda epochs: iter(epoch * epochs))
    return method, outputs


def step_losses(method: Method, outputs: TeacherOutputs, batch: Batch) -> dict[str, Tensor]:
    """The losses of a copy of the method, which stays as it is."""
    with torch.no_grad():
        return {**copy.deepcopy(method)(batch, outputs(batch, method.needs)).losses}


@pytest.mark.parametrize("name", methods.names())
def test_the_cross_entropy_of_every_method_learns_the_soft_targets(name: str) -> None:
    batch = a_batch()
    soft = replace(batch, soft_targets=SoftTargets(4, 0.3).of(batch.labels))
    method, outputs = made(name)
    hard, found = (step_losses(method, outputs, one) for one in (batch, soft))
    assert found["ce"].isfinite()
    assert found["ce"] != hard["ce"]
    by_labels = {"ce", "shallow"} if name in ("dsn", "byot") else {"ce"}
    for loss in hard.keys() - by_labels:
        assert torch.equal(found[loss], hard[loss]), loss
    one_hot = replace(batch, soft_targets=SoftTargets(4).of(batch.labels))
    for loss, value in step_losses(method, outputs, one_hot).items():
        torch.testing.assert_close(value, hard[loss])


@pytest.mark.parametrize(("name", "other"), [("dsn", "weight"), ("dskd", "gamma")])
def test_branches_that_learn_labels_learn_the_soft_targets(name: str, other: str) -> None:
    batch = a_batch()
    soft = replace(batch, soft_targets=SoftTargets(4, 0.3).of(batch.labels))
    method, outputs = made(name, ce=0.0, **{other: 1.0})
    assert method.learns_labels
    teacher = outputs(batch, method.needs)
    assert method(batch, teacher).losses["shallow"] != method(soft, teacher).losses["shallow"]


@pytest.mark.parametrize("parts", [2, 3])
def test_class_weights_make_no_difference_between_parts_and_the_whole(parts: int) -> None:
    found = []
    for count in (1, parts):
        method, outputs = made("kd")
        without_batchnorm(method)
        batch = SoftTargets(4, 0.1, torch.tensor([1.0, 8.0, 0.1, 2.0]))(a_batch(13))
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.0)
        train_step(method, outputs, batch, optimizer, "float32", parts=count)
        found.append([p.grad for p in method.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


SMALL = ["data.fraction=0.1", "train.epochs=1", "train.batch_size=32", "teacher=null"]


def with_labels(out: Path, *changes: str) -> Recipe:
    return recipe.load("digits", [*SMALL, "method.name=ce", f"out={out}", *changes])


def test_a_run_learns_smoothed_and_weighted_labels(
    tmp_path: Path,
) -> None:
    weights = [1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    plain = run.distill(with_labels(tmp_path / "plain"))
    for number, change in enumerate(
        (
            "train.label_smoothing=0.1",
            f"train.class_weights={weights}",
        )
    ):
        changed = run.distill(with_labels(tmp_path / str(number), change))
        assert not all(
            torch.equal(a, b)
            for a, b in zip(plain.student.parameters(), changed.student.parameters(), strict=True)
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.class_weights=[1, 2]"], "has 2 weights, and there are 10 classes"),
        (["train.class_weights=equal"], "balanced, or a list"),
        (["train.class_weights=[1, -2]"], "balanced, or a list"),
        (["train.label_smoothing=1"], "label_smoothing"),
        (["train.label_smoothing=0.1", "method.ce=0"], "no weight in the method 'ce'"),
        (["train.class_weights=balanced", "method.ce=0"], "no weight in the method 'ce'"),
    ],
)
def test_settings_of_labels_that_cannot_work_are_refused_in_a_line(
    tmp_path: Path, changes: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        run.distill(with_labels(tmp_path / "run", *changes))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_soft_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match="soft targets of shape"):
        losses.ce(LOGITS, torch.ones(5, 3))
