"""Semantic calibration: the trained attention and projections, and batches of other sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.methods.base import Pair
from dskd.methods.semckd import Embedding, SemCKD
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec
from dskd.teacher.frozen import FrozenTeacher
from tests.conftest import make_dataset, make_pair, staged
from tests.published import CASES, check, given, parameters


def batch_of(images: Tensor) -> Batch:
    count = torch.arange(len(images))
    return Batch(images, count % 4, count, count, count, epoch=0, step=0)


def published_method() -> SemCKD:
    def spec(*stages: tuple[int, int]) -> ModelSpec:
        return ModelSpec(4, tuple(StageSpec(c, side, side, True) for c, side in stages), 64)

    student, teacher = spec((16, 16), (32, 8), (64, 8)), spec((32, 16), (64, 8), (64, 8))
    method = SemCKD(Pair(staged(), student, teacher, largest_batch=32), weight=1.0).double()
    weights = parameters("semckd")

    def load(module: nn.Module, prefix: str, places: dict[str, str]) -> None:
        state = {
            key.replace(theirs, ours, 1): value
            for name, value in weights.items()
            for theirs, ours in places.items()
            if name.startswith(f"{prefix}.") and (key := name[len(prefix) + 1 :]).startswith(theirs)
        }
        counts = {k: v for k, v in module.state_dict().items() if k.endswith("_tracked")}
        module.load_state_dict(state | counts)

    embedding = {"linear1.": "layers.0.", "linear2.": "layers.2."}
    for stage in range(3):
        load(method.queries[stage], f"query_{stage}", embedding)
        load(method.keys[stage], f"key_{stage}", embedding)
        for target in range(3):
            place = {"regressor.": "layers."}
            load(method.projections[3 * stage + target], f"regressor{stage}{target}", place)
    return method


def test_value_and_gradient_are_the_published_ones() -> None:
    method, batch = published_method(), batch_of(torch.zeros(32, 3, 2, 2))

    def loss(*maps: Tensor) -> Tensor:
        student, teacher = (
            ModelOutput(maps[0], maps[:3], None),
            ModelOutput(maps[0], maps[3:], None),
        )
        return method.extra_losses(batch, student, teacher)["semckd"]

    check("semckd_full", loss)


def test_attention_is_the_published_one() -> None:
    student = tuple(given(name).detach() for name in ("f1", "f2", "f3"))
    teacher = tuple(given(name).detach() for name in ("g1", "g2", "g3"))
    attention = published_method().attention(student, teacher)
    expected = CASES["semckd_full"]["further"]
    for got, name in ((attention[0], "attention_row0"), (attention.mean(0), "attention_mean")):
        torch.testing.assert_close(got, torch.tensor(expected[name]).double(), rtol=1e-5, atol=0)


def made(student: str = "resnet8", teacher: str = "resnet14", **settings: Any) -> tuple[Any, ...]:
    data = make_dataset(size=32)
    pair, frozen = make_pair(staged(student), staged(teacher), data)
    assert isinstance(frozen, FrozenTeacher)
    return SemCKD(pair, **settings), frozen, data.train.images


@pytest.mark.parametrize(("student", "teacher"), [("vgg8", "resnet8"), ("resnet8", "vgg8")])
def test_numbers_of_stages_and_sizes_may_differ(student: str, teacher: str) -> None:
    method, frozen, images = made(student, teacher)
    batch = batch_of(images[:4])
    attention = method.attention(method.student(images).stages, frozen(images).stages)
    assert attention.shape[1:] == (len(method.queries), len(method.keys))
    assert method(batch, frozen(batch.images)).objective.isfinite()


def test_a_smaller_batch_is_as_one_whose_other_places_are_empty() -> None:
    embedding = Embedding(8)
    rows = torch.rand(5, 5)
    expected = embedding.layers(F.pad(rows, (0, 3)))
    assert torch.equal(embedding(rows), expected)
    assert Embedding(2)(torch.rand(2, 2)).shape == (2, 1)  # a fourth of 2 is none


def test_a_batch_above_the_largest_is_refused() -> None:
    with pytest.raises(InputError, match="batches of 8 images at most, got 9"):
        Embedding(8)(torch.rand(9, 9))


def test_softness_evens_the_attention_out() -> None:
    def spread(softness: float) -> float:
        torch.manual_seed(0)
        method, frozen, images = made(softness=softness)
        attention = method.attention(method.student(images).stages, frozen(images).stages)
        return float(attention.std(2).mean().detach())

    assert spread(0.2) > spread(1.0) > spread(5.0) > 0


def test_a_gradient_reaches_every_stage_and_all_that_is_trained_beside() -> None:
    method, frozen, images = made(ce=0.0, kd=0.0)
    batch = batch_of(images[:8])
    method(batch, frozen(batch.images)).objective.backward()
    for part in (method.queries, method.keys, method.projections, method.student.module.layer1):
        assert all(p.grad is not None for p in part.parameters())
    assert not any(p.grad is not None for p in frozen.parameters())
