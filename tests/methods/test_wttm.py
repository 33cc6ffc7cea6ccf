"""Weighted transformed teacher matching: a temperature for the teacher alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.logits import ce
from dskd.methods import resolve
from dskd.methods.wttm import WTTM, wttm_loss
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import DATA, batch_of
from tests.reference_values import cases, check, check_scaled

ARGUMENTS = Arguments(
    {"student_logits": "B K", "teacher_logits": "B K"},
    numbers={"gamma": 0.0},
    choices=("weighted",),
)
DEFAULTS = {"gamma": 0.1, "weighted": True}
PRESETS = {
    "literature": {"ce": 1.0, "kd": 3.0, "gamma": 0.1},
    "ttm": {"ce": 1.0, "kd": 100.0, "gamma": 0.1, "weighted": False},
}

GAMMAS = (0.1, 0.2, 0.5, 1, 1.5)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_value_and_gradient_are_those_of_the_reference(gamma: float) -> None:
    check(f"wttm_gamma{gamma}", lambda s, t: wttm_loss(s, t, gamma))
    check(f"ttm_gamma{gamma}", lambda s, t: wttm_loss(s, t, gamma, weighted=False))


def test_every_case_of_the_reference_is_compared() -> None:
    assert cases("wttm") == {f"wttm_gamma{gamma}" for gamma in GAMMAS}
    assert cases("ttm") == {f"ttm_gamma{gamma}" for gamma in GAMMAS}


def test_large_logits_have_the_values_of_the_reference() -> None:
    # The reference takes powers of a softmax that has lost its smallest values.
    check_scaled("ttm_gamma0.1", lambda s, t, _: wttm_loss(s, t, 0.1, weighted=False))
    check_scaled("wttm_gamma0.2", lambda s, t, _: wttm_loss(s, t, 0.2))


def naive(s: Tensor, t: Tensor, gamma: float, weighted: bool) -> float:
    total = 0.0
    for row_s, row_t in zip(s.tolist(), t.tolist(), strict=True):
        q = [math.exp(x) / sum(map(math.exp, row_s)) for x in row_s]
        powers = [(math.exp(x) / sum(map(math.exp, row_t))) ** gamma for x in row_t]
        u = sum(powers)
        divergence = sum(
            a / u * (math.log(a / u) - math.log(b)) for a, b in zip(powers, q, strict=True)
        )
        total += (u if weighted else 1) * divergence
    return total / len(s)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("gamma", [0.2, 1.0, 2.0])
def test_the_loss_is_the_naive_loop(gamma: float, weighted: bool) -> None:
    s, t = torch.randn(2, 4, 5).double() * 3
    assert wttm_loss(s, t, gamma, weighted).item() == pytest.approx(naive(s, t, gamma, weighted))


def test_shifts_and_the_order_of_images_and_classes_do_not_matter() -> None:
    s, t = torch.randn(2, 4, 5).double()
    value = wttm_loss(s, t)
    torch.testing.assert_close(wttm_loss(s + 3, t - 2), value)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    torch.testing.assert_close(wttm_loss(s[rows][:, columns], t[rows][:, columns]), value)


def test_a_student_that_is_the_transformed_teacher_costs_nothing() -> None:
    t = torch.randn(4, 5).double()
    assert wttm_loss(0.3 * t + 1, t, gamma=0.3).item() == pytest.approx(0, abs=1e-12)


def test_an_unsure_teacher_weighs_more() -> None:
    s, sure, unsure = torch.randn(1, 5), 20 * torch.eye(5)[:1], torch.zeros(1, 5)

    def weight(t: Tensor) -> float:
        return (wttm_loss(s, t, 0.5) / wttm_loss(s, t, 0.5, weighted=False)).item()

    assert weight(sure) == pytest.approx(1, abs=1e-3)
    assert weight(unsure) == pytest.approx(5**0.5)


@pytest.mark.parametrize("shape", [(1, 2), (1, 100), (7, 2), (8, 10)])
@pytest.mark.parametrize("gamma", [0.1, 2.0])
def test_large_logits_give_finite_values_and_gradients(
    shape: tuple[int, int], gamma: float
) -> None:
    s, t = 100 * torch.randn(2, *shape).sign()
    check_finite_with_gradient(lambda s, t: wttm_loss(s, t, gamma), s, t)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(wttm_loss, *torch.randn(2, 4, 5))


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"logits \[B, K\] of one shape are needed"):
        wttm_loss(torch.zeros(2, 3), torch.zeros(1, 3))
    for gamma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="gamma must be above 0"):
            wttm_loss(torch.zeros(2, 3), torch.zeros(2, 3), gamma)


@pytest.mark.parametrize("preset", [None, "literature", "ttm"])
def test_the_losses_are_those_of_labels_and_teacher(preset: str | None) -> None:
    pair, teacher = make_pair(staged(), staged("resnet14"), DATA)
    assert teacher is not None
    settings = resolve("wttm", {"preset": preset} if preset else {})
    method = WTTM(pair, **settings).eval()
    batch = batch_of(DATA.train.images[:8])
    taught = teacher(batch.images)
    logits = method.student(batch.images).logits
    weight = {None: 1.0, "literature": 3.0, "ttm": 100.0}[preset]
    expected = {
        "ce": ce(logits, batch.labels),
        "wttm": weight * wttm_loss(logits, taught.logits, 0.1, weighted=preset != "ttm"),
    }
    torch.testing.assert_close(method(batch, taught).losses, expected)
