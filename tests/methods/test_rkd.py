"""Relational KD: distances and angles between the pooled vectors of a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.methods.rkd import RKD, rkd_loss
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

ARGUMENTS = Arguments(
    {"student": "B D", "teacher": "B E"}, numbers={"distance": float("nan"), "angle": float("nan")}
)
DEFAULTS = {"distance": 25.0, "angle": 50.0}
PRESETS = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 1.0, "distance": 25.0, "angle": 50.0}}

REFERENCE: dict[str, Callable[..., Tensor]] = {
    "rkd_distance": partial(rkd_loss, distance=1.0, angle=0.0),
    "rkd_distance_x25": partial(rkd_loss, angle=0.0),
    "rkd_angle": partial(rkd_loss, distance=0.0, angle=1.0),
    "rkd_angle_x50": partial(rkd_loss, distance=0.0),
    "rkd_both": rkd_loss,
    "rkd_repdistiller": rkd_loss,
    "rkd_torchdistill": rkd_loss,
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_no_reference_value_is_left_out() -> None:
    assert cases("rkd") == REFERENCE.keys()


def _huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) <= 1 else abs(difference) - 0.5


def test_the_loss_is_the_naive_loop() -> None:
    s, t = torch.randn(4, 3).double(), torch.randn(4, 5).double()
    count = range(len(s))

    def distance(x: Tensor, i: int, j: int) -> float:
        mean = sum(float((x[a] - x[b]).norm()) for a in count for b in count)
        return float((x[i] - x[j]).norm()) / (mean / (len(x) * (len(x) - 1)))

    def angle(x: Tensor, i: int, j: int, k: int) -> float:
        return 0.0 if j in (i, k) else float(F.cosine_similarity(x[i] - x[j], x[k] - x[j], dim=0))

    distances = [_huber(distance(s, i, j) - distance(t, i, j)) for i in count for j in count]
    triplets = [(i, j, k) for i in count for j in count for k in count]
    angles = [_huber(angle(s, *triplet) - angle(t, *triplet)) for triplet in triplets]
    expected = 25 * sum(distances) / len(distances) + 50 * sum(angles) / len(angles)
    assert rkd_loss(s, t).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", VECTORS)
def test_values_and_gradients_are_finite(kind: str) -> None:
    check_finite(rkd_loss, VECTORS[kind], largest_gradient=1e6)


def test_a_lone_image_has_no_relations() -> None:
    check_lone_image(rkd_loss)


def test_scale_rotation_and_order_do_not_matter() -> None:
    check_relations(rkd_loss)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(rkd_loss, torch.randn(4, 3), torch.randn(4, 3))


def test_vectors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="of the same images are needed"):
        rkd_loss(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(InputError, match=r"vectors \[B, D\]"):
        rkd_loss(torch.zeros(4, 3, 1), torch.zeros(4, 3, 1))


def test_the_method_compares_pooled_vectors_of_any_lengths() -> None:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet8x4"), DATA)
    assert teacher is not None
    method = RKD(pair, weight=2.0, distance=3.0, angle=4.0).eval()
    images = DATA.train.images[:4]
    target = teacher(images).pooled
    assert target is not None
    expected = 2 * rkd_loss(method.student(images).pooled, target, 3.0, 4.0)
    torch.testing.assert_close(method(batch_of(images), teacher(images)).losses["rkd"], expected)
