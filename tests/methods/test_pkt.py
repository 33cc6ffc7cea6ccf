"""Probabilistic knowledge transfer: the neighbourhoods of a batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.methods.pkt import PKT, pkt_loss
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import (
    VECTORS,
    check_finite,
    check_full_precision,
    check_lone_image,
    check_relations,
)
from tests.methods.inputs import DATA, batch_of
from tests.reference_values import cases, check

ARGUMENTS = Arguments({"student": "B D", "teacher": "B E"}, numbers={"eps": -1.0})
DEFAULTS = {"eps": 1e-07}
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 30000.0}}

REFERENCE = ["pkt_mdistiller", "pkt_repdistiller", "pkt_torchdistill"]


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, pkt_loss)


def test_no_reference_value_is_left_out() -> None:
    assert cases("pkt") == set(REFERENCE)


def test_the_loss_is_the_naive_loop() -> None:
    def neighbours(x: Tensor, i: int) -> list[float]:
        likeness = [1 + float(F.cosine_similarity(x[i], x[j], dim=0)) for j in range(len(x))]
        return [value / sum(likeness) for value in likeness]

    s, t = torch.randn(4, 3).double(), torch.randn(4, 5).double()
    total = 0.0
    for i in range(len(s)):
        for p, q in zip(neighbours(t, i), neighbours(s, i), strict=True):
            total += p * math.log((p + 1e-7) / (q + 1e-7))
    assert pkt_loss(s, t).item() == pytest.approx(total / len(s) ** 2, rel=1e-6)


@pytest.mark.parametrize("kind", VECTORS)
def test_values_and_gradients_are_finite(kind: str) -> None:
    check_finite(pkt_loss, VECTORS[kind], largest_gradient=1e6)


def test_a_lone_image_has_no_relations() -> None:
    check_lone_image(pkt_loss)


def test_scale_rotation_and_order_do_not_matter() -> None:
    check_relations(pkt_loss)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(pkt_loss, torch.randn(4, 3), torch.randn(4, 3))


def test_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="of the same images are needed"):
        pkt_loss(torch.zeros(4, 3), torch.zeros(5, 3))


def test_the_method_compares_pooled_vectors_of_any_lengths() -> None:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet8x4"), DATA)
    assert teacher is not None
    method = PKT(pair, weight=3.0).eval()
    images = DATA.train.images[:4]
    target = teacher(images).pooled
    assert target is not None
    expected = 3 * pkt_loss(method.student(images).pooled, target)
    torch.testing.assert_close(method(batch_of(images), teacher(images)).losses["pkt"], expected)
