"""Multi-level logit distillation: instance, batch and class level at several temperatures."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.logits import ce, kd
from dskd.methods import resolve
from dskd.methods.mlkd import MLKD, mlkd_loss
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import DATA, batch_of
from tests.reference_values import cases, check, check_scaled

ARGUMENTS = Arguments(
    {"student_logits": "B K", "teacher_logits": "B K"},
    numbers={
        "instance_level": float("nan"),
        "batch_level": float("nan"),
        "class_level": float("nan"),
        "temperatures": 4.0,
    },
    choices=("standardize",),
)
DEFAULTS = {
    "temperatures": (2.0, 3.0, 4.0, 5.0, 6.0),
    "instance_level": 1.0,
    "batch_level": 1.0,
    "class_level": 1.0,
    "standardize": False,
}
PRESETS = {
    "literature": {"ce": 0.1, "kd": 0.9},
    "code": {"ce": 0.2, "kd": 0.9, "instance_level": 1.5, "batch_level": 0.5, "class_level": 0.5},
}

CODE = (4.0, 3.0, 5.0, 2.0, 6.0)
"""The temperatures of the authors' code for CIFAR-100."""


def level(index: int, *temperatures: float) -> Callable[[Tensor, Tensor], Tensor]:
    """One of the three levels alone."""
    instance, batch, classes = (float(index == one) for one in range(3))
    return lambda s, t: mlkd_loss(s, t, temperatures, instance, batch, classes)


def masked(s: Tensor, t: Tensor) -> Tensor:
    """What a mask of the images that the teacher is surest about would give."""
    confidence = t.softmax(1).amax(1)
    confident = confidence <= confidence.median()
    each = torch.stack([kd(s, t, temperature, reduction="none") for temperature in CODE])
    return torch.where(confident, each.sum(0), 0).mean()


def two_views(first: float, by_labels: float, by_teacher: float) -> Callable[..., Tensor]:
    """The objective of the authors' code, from our loss.

    The method itself has one view (see its docstring). ``first`` is the first of the temperatures.
    """

    def loss(s: Tensor, s_strong: Tensor, t: Tensor, t_strong: Tensor, y: Tensor) -> Tensor:
        levels = mlkd_loss(s, t, (first, 3, 5, 2, 6), 0.5, 0.5, 0.5)
        added = level(0, first, 3, 5)(s_strong, t_strong) + level(0, 2, 6)(s, t)
        return by_labels * (ce(s, y) + ce(s_strong, y)) + by_teacher * (levels + added)

    return loss


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "mlkd_instance_T4": level(0, 4.0),
    "mlkd_batch_T4": level(1, 4.0),
    "mlkd_class_T4": level(2, 4.0),
    "mlkd_batch_T1": level(1, 1.0),
    "mlkd_class_T1": level(2, 1.0),
    "mlkd_instance_Tsum": level(0, *CODE),
    "mlkd_batch_Tsum": level(1, *CODE),
    "mlkd_class_Tsum": level(2, *CODE),
    "mlkd_instance_masked_Tsum": masked,
    "mlkd_two_views": two_views(4.0, 0.1, 0.9),
    "mlkd_two_views_imagenet": two_views(1.0, 0.5, 0.5),
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_the_preset_code_is_the_objective_of_the_authors_code_for_one_view() -> None:
    pair, _ = make_pair(staged(), staged("resnet14"), DATA)
    method = MLKD(pair, **resolve("mlkd", {"preset": "code"}))
    batch = batch_of(DATA.train.images[:8])

    def objective(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return method.ce * ce(s, y) + method.logit_losses(batch, s, t)["mlkd"]

    check("mlkd_one_view", objective)
    assert cases("mlkd") == {*REFERENCE, "mlkd_one_view"}


@pytest.mark.parametrize("index", range(3))
def test_large_logits_have_the_values_of_the_reference(index: int) -> None:
    name = ("instance", "batch", "class")[index]
    check_scaled(f"mlkd_{name}_T4", lambda s, t, _: level(index, 4.0)(s, t))


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in values]
    return [x / sum(powers) for x in powers]


def squared_distance(p: list[list[float]], q: list[list[float]]) -> float:
    """Between the similarities of the rows."""
    return sum(
        (
            sum(a * b for a, b in zip(p[i], p[j], strict=True))
            - sum(a * b for a, b in zip(q[i], q[j], strict=True))
        )
        ** 2
        for i in range(len(p))
        for j in range(len(p))
    )


def transposed(rows: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def test_the_loss_is_the_naive_loop() -> None:
    s, t = torch.randn(2, 4, 5).double() * 3
    expected = 0.0
    for temperature in (1.0, 2.5):
        p = [softmax(row, temperature) for row in t.tolist()]
        q = [softmax(row, temperature) for row in s.tolist()]
        instance = sum(p[i][c] * math.log(p[i][c] / q[i][c]) for i in range(4) for c in range(5))
        expected += 0.5 * temperature**2 * instance / 4
        expected += 2.0 * squared_distance(p, q) / 4
        expected += 3.0 * squared_distance(transposed(p), transposed(q)) / 5
    assert mlkd_loss(s, t, [1.0, 2.5], 0.5, 2.0, 3.0).item() == pytest.approx(expected)


def test_shifts_and_the_order_of_images_and_classes_do_not_matter() -> None:
    s, t = torch.randn(2, 4, 5).double() * 5
    value = mlkd_loss(s, t)
    torch.testing.assert_close(mlkd_loss(s + 3, t - 2), value)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    torch.testing.assert_close(mlkd_loss(s[rows][:, columns], t[rows][:, columns]), value)


def test_the_batch_level_alone_does_not_see_which_class_is_which() -> None:
    s, t = torch.randn(2, 4, 5).double() * 5
    columns = torch.tensor([4, 1, 0, 3, 2])
    torch.testing.assert_close(level(1, 2.0)(s[:, columns], t), level(1, 2.0)(s, t))
    assert level(0, 2.0)(s[:, columns], t) != pytest.approx(level(0, 2.0)(s, t).item())


def test_the_class_level_alone_does_not_see_which_image_is_which() -> None:
    s, t = torch.randn(2, 4, 5).double() * 5
    torch.testing.assert_close(level(2, 2.0)(s.flip(0), t), level(2, 2.0)(s, t))


def test_the_batch_level_grows_with_the_batch_and_the_class_level_with_its_square() -> None:
    s, t = torch.randn(2, 4, 5).double() * 5
    alone = [level(index, 2.0)(s, t) for index in range(3)]
    twice = [level(index, 2.0)(s.repeat(2, 1), t.repeat(2, 1)) for index in range(3)]
    torch.testing.assert_close(twice[0], alone[0])
    torch.testing.assert_close(twice[1], 2 * alone[1])
    torch.testing.assert_close(twice[2], 4 * alone[2])


@pytest.mark.parametrize("shape", [(1, 2), (1, 100), (7, 2), (8, 10)])
def test_large_logits_give_finite_values_and_gradients(shape: tuple[int, int]) -> None:
    s, t = 100 * torch.randn(2, *shape).sign()
    check_finite_with_gradient(mlkd_loss, s, t)


def test_half_precision_is_computed_in_full() -> None:
    check_full_precision(mlkd_loss, *torch.randn(2, 4, 5))


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"logits \[B, K\] of one shape are needed"):
        mlkd_loss(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="temperature must be above 0"):
        mlkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), (1.0, 0.0))
    for temperatures in ([], [1.0, 0.0], [-1.0], 4.0):
        with pytest.raises(InputError, match="temperatures"):
            resolve("mlkd", {"temperatures": temperatures})


def test_the_losses_are_those_of_labels_and_levels() -> None:
    pair, teacher = make_pair(staged(), staged("resnet14"), DATA)
    assert teacher is not None
    settings = {"instance_level": 0.5, "batch_level": 2.0, "class_level": 3.0}
    method = MLKD(pair, ce=0.5, kd=2.0, temperatures=(1.0, 3.0), **settings).eval()
    batch = batch_of(DATA.train.images[:8])
    taught = teacher(batch.images)
    logits = method.student(batch.images).logits
    expected = {
        "ce": 0.5 * ce(logits, batch.labels),
        "mlkd": 2 * mlkd_loss(logits, taught.logits, (1.0, 3.0), 0.5, 2.0, 3.0),
    }
    torch.testing.assert_close(method(batch, taught).losses, expected)
