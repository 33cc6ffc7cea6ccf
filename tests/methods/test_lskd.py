"""Logit standardisation, for three base losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.logits import ce, dkd, kd
from dskd.methods import resolve
from dskd.methods.lskd import LSKD, Base, lskd_loss
from dskd.methods.mlkd import mlkd_loss
from tests.builders import make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.edge_cases import check_finite_with_gradient, check_full_precision
from tests.methods.inputs import DATA, batch_of
from tests.reference_values import cases, check, check_scaled

ARGUMENTS = Arguments(
    {"student_logits": "B K", "teacher_logits": "B K", "labels": "B"},
    indices={"labels": "K"},
    numbers={"alpha": float("nan"), "beta": float("nan"), "temperature": 0.0},
    choices=("base",),
)
DEFAULTS = {"base": "kd", "temperature": 2.0, "alpha": 1.0, "beta": 8.0}
PRESETS = {
    "literature": {"base": "kd", "ce": 0.1, "kd": 9.0},
    "literature-dkd": {
        "base": "dkd",
        "ce": 1.0,
        "kd": 9.0,
        "alpha": 1.0,
        "beta": 8.0,
        "warmup": 20.0,
    },
    "literature-mlkd": {"base": "mlkd", "ce": 0.1, "kd": 9.0},
}

BASES: tuple[Base, ...] = get_args(Base)
LABELS = torch.tensor([0, 4, 2, 0])


def base_kd(temperature: float) -> Callable[..., Tensor]:
    return lambda s, t: lskd_loss(s, t, torch.zeros(len(s)).long(), "kd", temperature)


def base_dkd(temperature: float, factor: float = 1.0) -> Callable[..., Tensor]:
    return lambda s, t, y: lskd_loss(s, t, y, "dkd", temperature, factor, 8 * factor)


def objective(preset: str, epoch: int = 0) -> Callable[..., Tensor]:
    """The method's whole objective for given logits."""
    pair, _ = make_pair(staged(), staged("resnet14"), DATA)
    method = LSKD(pair, **resolve("lskd", {"preset": preset}))

    def loss(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        batch = batch_of(torch.zeros(len(y), 3, 2, 2), epoch)
        object.__setattr__(batch, "labels", y)
        return method.ce * ce(s, y) + method.logit_losses(batch, s, t)["lskd"]

    return loss


def two_views(s: Tensor, s_strong: Tensor, t: Tensor, t_strong: Tensor, y: Tensor) -> Tensor:
    """The objective of the authors' code for MLKD, see tests/methods/test_mlkd.py."""
    levels = 0.5 * lskd_loss(s, t, y, "mlkd", 2.0)
    added = mlkd_loss(s_strong, t_strong, (2, 3, 5), 1, 0, 0, standardize=True)
    added = added + mlkd_loss(s, t, (2, 6), 1, 0, 0, standardize=True)
    return 0.1 * (ce(s, y) + ce(s_strong, y)) + 9 * (levels + added)


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "lskd_kd_T2": base_kd(2.0),
    "lskd_kd_T3": base_kd(3.0),
    "lskd_kd_T4": base_kd(4.0),
    "lskd_off_T4": lambda s, t: kd(s, t, 4.0),
    "lskd_dkd_T2_a1_b8": base_dkd(2.0),
    "lskd_dkd_T2_a9_b72": base_dkd(2.0, 9.0),
    "lskd_dkd_T4_a1_b8": base_dkd(4.0),
    "lskd_mlkd_two_views": two_views,
    "lskd_kd_full": lambda *given: objective("literature")(*given),
    # The reference counts epochs from 1.
    "lskd_dkd_full_epoch5": lambda *given: objective("literature-dkd", epoch=4)(*given),
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_every_case_of_the_reference_is_compared() -> None:
    assert cases("lskd") == {*REFERENCE}


def test_large_logits_have_the_values_of_the_reference() -> None:
    check_scaled("lskd_kd_T2", lambda s, t, _: base_kd(2.0)(s, t))
    check_scaled("lskd_dkd_T2_a9_b72", base_dkd(2.0, 9.0))


def z_scores(logits: Tensor) -> Tensor:
    rows = []
    for row in logits.tolist():
        mean = sum(row) / len(row)
        deviation = (sum((x - mean) ** 2 for x in row) / (len(row) - 1)) ** 0.5
        rows.append([(x - mean) / deviation for x in row])
    return torch.tensor(rows, dtype=logits.dtype)


def test_the_loss_is_the_base_loss_of_naive_z_scores() -> None:
    s, t = torch.randn(2, 4, 5).double() * 3
    zs, zt = z_scores(s), z_scores(t)
    expected = {
        "kd": kd(zs, zt, 2.0),
        "dkd": dkd(zs, zt, LABELS, 0.5, 3.0, 2.0),
        # The similarities of images and classes are those of the logits as they are.
        "mlkd": mlkd_loss(zs, zt, (2, 3, 5, 2, 6), 1, 0, 0)
        + mlkd_loss(s, t, (2, 3, 5, 2, 6), 0, 1, 1),
    }
    for base in BASES:
        value = lskd_loss(s, t, LABELS, base, 2.0, 0.5, 3.0)
        torch.testing.assert_close(value, expected[base], rtol=1e-6, atol=0)


@pytest.mark.parametrize("base", ["kd", "dkd"])
def test_the_scale_and_shift_of_either_side_do_not_matter(base: Base) -> None:
    s, t = torch.randn(2, 4, 5).double()
    value = lskd_loss(s, t, LABELS, base)
    scaled = lskd_loss(7 * s + 3, 0.2 * t - 2, LABELS, base)
    torch.testing.assert_close(scaled, value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("base", BASES)
def test_the_order_of_images_and_classes_does_not_matter(base: Base) -> None:
    s, t = torch.randn(2, 4, 5).double()
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    moved = columns.argsort()[LABELS][rows]
    value = lskd_loss(s[rows][:, columns], t[rows][:, columns], moved, base)
    torch.testing.assert_close(value, lskd_loss(s, t, LABELS, base))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("shape", [(1, 2), (1, 100), (7, 2), (8, 10)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_values_and_gradients_are_finite(base: Base, shape: tuple[int, int], scale: float) -> None:
    s, t = scale * torch.randn(2, *shape).sign()
    y = torch.arange(shape[0]) % shape[1]
    check_finite_with_gradient(lambda s, t: lskd_loss(s, t, y, base), s, t)


@pytest.mark.parametrize("base", BASES)
def test_half_precision_is_computed_in_full(base: Base) -> None:
    check_full_precision(lambda s, t: lskd_loss(s, t, LABELS, base), *torch.randn(2, 4, 5))


def test_arguments_that_do_not_fit_are_refused() -> None:
    logits: Any = torch.zeros(4, 5)
    with pytest.raises(InputError, match="unknown base loss 'kdd'; did you mean 'kd'"):
        lskd_loss(logits, logits, LABELS, "kdd")  # type: ignore[arg-type]
    for base in BASES:
        with pytest.raises(InputError, match="of one shape are needed"):
            lskd_loss(logits, torch.zeros(4, 6), LABELS, base)
        with pytest.raises(InputError, match="temperature must be above 0"):
            lskd_loss(logits, logits, LABELS, base, temperature=0.0)


@pytest.mark.parametrize("base", BASES)
def test_the_losses_are_those_of_labels_and_teacher(base: Base) -> None:
    pair, teacher = make_pair(staged(), staged("resnet14"), DATA)
    assert teacher is not None
    method = LSKD(pair, base=base, ce=0.5, kd=2.0, temperature=3.0, alpha=0.7, beta=3.0).eval()
    batch = batch_of(DATA.train.images[:8])
    taught = teacher(batch.images)
    logits = method.student(batch.images).logits
    expected = {
        "ce": 0.5 * ce(logits, batch.labels),
        "lskd": 2 * lskd_loss(logits, taught.logits, batch.labels, base, 3.0, 0.7, 3.0),
    }
    torch.testing.assert_close(method(batch, taught).losses, expected)


def test_a_method_with_a_warmup_is_not_compiled() -> None:
    pair, _ = make_pair(staged(), staged("resnet14"), DATA)
    assert not LSKD(pair).uncompiled
    assert "method.warmup changes a weight" in LSKD(pair, warmup=2.0).uncompiled
