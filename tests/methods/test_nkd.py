"""Normalised KD: the label, and the other classes as a distribution of their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.logits import ce
from dskd.methods.nkd import NKD, nkd_loss
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import DATA, batch_of
from tests.reference_values import cases, check, check_scaled

ARGUMENTS = Arguments(
    {"student_logits": "B K", "teacher_logits": "B K", "labels": "B"},
    indices={"labels": "K"},
    numbers={"gamma": float("nan"), "temperature": 0.0},
    choices=("reduction",),
)
DEFAULTS = {"gamma": 3.5, "temperature": 3.0, "reduction": "mean"}
PRESETS = {"literature": {"ce": 1.0, "kd": 1.0, "gamma": 3.5, "temperature": 3.0}}

REFERENCE: dict[str, Callable[..., Tensor]] = {
    "nkd_T1_g1.5": lambda s, t, y: nkd_loss(s, t, y, 1.5, 1.0),
    "nkd_tc_T1_g1.5": lambda s, t, y: nkd_loss(s, t, y, 1.5, 1.0),
    "nkd_tc_T3_g3.5": lambda s, t, y: nkd_loss(s, t, y, 3.5, 3.0),
    "nkd_tc_T1_g1": lambda s, t, y: nkd_loss(s, t, y, 1.0, 1.0),
    # Mixed labels: the largest entry is the label. Our labels are never mixed.
    "nkd_soft_T1_g1": lambda s, t, y: nkd_loss(s, t, y.argmax(1), 1.0, 1.0),
}
"""The paper's USKD has no case here: it learns without a teacher, so it is another method."""


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_every_case_of_the_reference_is_compared() -> None:
    assert cases("nkd") == {*REFERENCE}


def test_large_logits_have_the_values_of_the_reference() -> None:
    check_scaled("nkd_T1_g1.5", lambda s, t, y: nkd_loss(s, t, y, 1.5, 1.0))


def softmax(values: list[float]) -> list[float]:
    return [math.exp(x) / sum(map(math.exp, values)) for x in values]


def naive(s: Tensor, t: Tensor, y: Tensor, gamma: float, temperature: float) -> list[float]:
    each = []
    for row_s, row_t, label in zip(s.tolist(), t.tolist(), y.tolist(), strict=True):
        target = -softmax(row_t)[label] * math.log(softmax(row_s)[label])
        p, q = (
            softmax([x / temperature for c, x in enumerate(row) if c != label])
            for row in (row_t, row_s)
        )
        others = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
        each.append(target + gamma * temperature**2 * others)
    return each


@pytest.mark.parametrize(("gamma", "temperature"), [(3.5, 3.0), (0.0, 1.0), (1.0, 0.5)])
def test_the_loss_is_the_naive_loop(gamma: float, temperature: float) -> None:
    s, t = torch.randn(2, 4, 5).double() * 3
    y = torch.tensor([0, 4, 2, 0])
    each = naive(s, t, y, gamma, temperature)
    assert nkd_loss(s, t, y, gamma, temperature).item() == pytest.approx(sum(each) / 4)
    found = nkd_loss(s, t, y, gamma, temperature, reduction="none")
    assert found.tolist() == pytest.approx(each)


def test_shifts_and_the_order_of_images_and_classes_do_not_matter() -> None:
    s, t = torch.randn(2, 4, 5).double()
    y = torch.tensor([0, 4, 2, 0])
    value = nkd_loss(s, t, y)
    torch.testing.assert_close(nkd_loss(s + 3, t - 2, y), value)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    moved = columns.argsort()[y][rows]
    torch.testing.assert_close(nkd_loss(s[rows][:, columns], t[rows][:, columns], moved), value)


def test_the_teacher_s_logits_at_the_label_do_not_change_the_other_part() -> None:
    s, t = torch.randn(2, 1, 5).double()
    y = torch.tensor([1])

    def others(t: Tensor) -> Tensor:
        return nkd_loss(s, t, y, 2.0) - nkd_loss(s, t, y, 1.0)

    torch.testing.assert_close(others(t + 5 * torch.eye(5).double()[1]), others(t))


@pytest.mark.parametrize("shape", [(1, 2), (1, 100), (7, 2), (8, 10)])
def test_large_logits_give_finite_values_and_gradients(shape: tuple[int, int]) -> None:
    s, t = 100 * torch.randn(2, *shape).sign()
    y = torch.arange(shape[0]) % shape[1]
    check_finite_with_gradient(lambda s, t: nkd_loss(s, t, y), s, t)


def test_half_precision_is_computed_in_full() -> None:
    y = torch.tensor([0, 4, 2, 0])
    check_full_precision(lambda s, t: nkd_loss(s, t, y), *torch.randn(2, 4, 5))


def test_arguments_that_do_not_fit_are_refused() -> None:
    y = torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"logits \[B, K\] of one shape are needed"):
        nkd_loss(torch.zeros(2, 3), torch.zeros(1, 3), y)
    with pytest.raises(InputError, match="temperature must be above 0"):
        nkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), y, temperature=0.0)


def test_the_losses_are_those_of_labels_and_teacher() -> None:
    pair, teacher = make_pair(staged(), staged("resnet14"), DATA)
    assert teacher is not None
    method = NKD(pair, ce=0.5, kd=2.0, gamma=0.7, temperature=2.0).eval()
    batch = batch_of(DATA.train.images[:8])
    taught = teacher(batch.images)
    logits = method.student(batch.images).logits
    expected = {
        "ce": 0.5 * ce(logits, batch.labels),
        "nkd": 2 * nkd_loss(logits, taught.logits, batch.labels, 0.7, 2.0),
    }
    torch.testing.assert_close(method(batch, taught).losses, expected)
