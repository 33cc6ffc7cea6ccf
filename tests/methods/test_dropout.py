"""A dropout before the student's classifier: vectors are compared as they are before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd import methods
from dskd.data.loader import Batch
from dskd.methods.norm import NORM
from dskd.models.output import ModelOutput
from dskd.models.spec import describe
from dskd.models.staged_model import StagedModel
from tests.builders import make_dataset, make_pair, staged
from tests.methods.inputs import batch_of

DATA = make_dataset(size=16, per_class=4)
IMAGES = DATA.train.images[:6]


class Net(nn.Module):
    """A classifier with a dropout after its average, before its last map, or as a function."""

    def __init__(self, late: float = 0.0, early: float = 0.0, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Dropout(early))
        self.dropout = nn.Dropout(late)
        self.drop_rate = drop_rate
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        vectors = self.dropout(self.body(images).mean((2, 3)))
        logits: Tensor = self.head(F.dropout(vectors, self.drop_rate, self.training))
        return logits


def student(**rates: float) -> StagedModel:
    torch.manual_seed(0)
    return StagedModel(Net(**rates), ["body"], mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(
    ("rates", "drops"),
    [
        ({}, False),
        ({"late": 0.5}, True),
        ({"drop_rate": 0.5}, True),
        ({"early": 0.5}, False),
        ({"early": 0.5, "late": 0.5}, True),
    ],
    ids=str,
)
def test_an_active_dropout_is_found_and_no_random_number_is_used(
    rates: dict[str, float], drops: bool
) -> None:
    model = student(**rates).train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert describe(model, IMAGES).drops_pooled is drops
    assert torch.equal(torch.rand(4), expected)
    assert all(part.training for part in model.modules())


def test_a_dropout_that_came_frozen_is_not_active() -> None:
    net = Net(late=0.5)
    net.dropout.eval()
    model = StagedModel(net, ["body"], mean=(0.5,) * 3, std=(0.25,) * 3)
    assert not describe(model, IMAGES).drops_pooled


def seen(name: str, **rates: float) -> tuple[ModelOutput, ModelOutput]:
    """The student's output that a method compares in training, and that without its dropouts."""
    pair, teacher = make_pair(student(**rates), staged("resnet14"), DATA)
    method: Any = methods.find(name)(pair)
    assert teacher is not None
    found: list[ModelOutput] = []
    inner = method.extra_losses

    def recorded(batch: Batch, student: ModelOutput, teacher: ModelOutput) -> dict[str, Tensor]:
        found.append(student)
        losses: dict[str, Tensor] = inner(batch, student, teacher)
        return losses

    method.extra_losses = recorded
    batch = batch_of(IMAGES)
    method.train()(batch, teacher(IMAGES))
    return found[0], method.student.eval()(IMAGES)


@pytest.mark.parametrize("name", ["vkd", "srrl", "crd", "rkd", "pkt", "cc", "reviewkd"])
def test_vectors_are_compared_before_the_dropout(name: str) -> None:
    compared, plain = seen(name, late=0.9)
    assert compared.pooled is not None
    assert plain.pooled is not None
    torch.testing.assert_close(compared.pooled, plain.pooled)
    assert not torch.allclose(compared.logits, plain.logits)


def test_sskd_compares_vectors_before_the_dropout() -> None:
    pair, teacher = make_pair(student(late=0.9), staged("resnet14"), DATA)
    method: Any = methods.find("sskd")(pair)
    assert teacher is not None
    given: list[Tensor] = []
    method.student_head.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    batch = batch_of(IMAGES)
    method.train()(batch, teacher(torch.cat([IMAGES] * 4)))
    torch.testing.assert_close(given[0][:6], method.student.eval()(IMAGES).pooled)


def test_norm_tells_that_it_does_not_use_the_dropout() -> None:
    for late in (0.5, 0.0):
        pair, _ = make_pair(student(late=late), staged("resnet14"), DATA)
        warnings = NORM(pair).warnings
        assert [line[:42] for line in warnings] == [
            "norm does not use the student's dropout be"
        ] * (late > 0)
