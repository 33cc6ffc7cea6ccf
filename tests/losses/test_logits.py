"""Logit losses: reference values, naive loops and invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskd.errors import InputError
from dskd.losses import LOGIT_LOSSES, ce, dist, dkd, kd
from dskd.losses.logits import PER_SAMPLE, bind
from tests.reference_values import cases, check

REFERENCE: dict[str, Callable[..., Tensor]] = {
    "ce": lambda s, y: ce(s, y),
    "kd_mdistiller": lambda s, t: kd(s, t, 4.0),
    "kd_repdistiller": lambda s, t: kd(s, t, 4.0),
    "kd_simkd": lambda s, t: kd(s, t, 4.0),
    "kd_torchdistill_alpha0": lambda s, t, _: kd(s, t, 4.0) / 4**2,  # it has no T^2
    "kd_torchdistill_alpha0.5": lambda s, t, y: 0.5 * ce(s, y) + 0.5 * kd(s, t, 4.0),
    "dkd": lambda s, t, y: dkd(s, t, y, alpha=1.0, beta=8.0, temperature=4.0),
    "dkd_tckd_part": lambda s, t, y: dkd(s, t, y, alpha=1.0, beta=0.0, temperature=4.0),
    "dkd_nckd_part": lambda s, t, y: dkd(s, t, y, alpha=0.0, beta=1.0, temperature=4.0),
    "dist_tau1": lambda s, t: dist(s, t, temperature=1.0),
    "dist_tau4": lambda s, t: dist(s, t, temperature=4.0),
    "logitstd_kd_alpha0.5": lambda s, t, y: 0.5 * ce(s, y) + 0.5 * kd(s, t, 2.0, standardize=True),
}


@pytest.mark.parametrize("case", REFERENCE)
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    check(case, REFERENCE[case])


def test_no_reference_value_is_left_out() -> None:
    prefixes = ("ce", "kd", "dkd", "dist", "logitstd")
    assert set().union(*map(cases, prefixes)) == REFERENCE.keys()


def naive_kd(s: Tensor, t: Tensor, temperature: float) -> float:
    total = 0.0
    for row_s, row_t in zip(s.tolist(), t.tolist(), strict=True):
        p = [math.exp(x / temperature) for x in row_t]
        q = [math.exp(x / temperature) for x in row_s]
        for a, b in zip(p, q, strict=True):
            total += a / sum(p) * (math.log(a / sum(p)) - math.log(b / sum(q)))
    return temperature**2 * total / len(s)


@given(st.integers(0, 10_000), st.floats(0.5, 20), st.integers(2, 6), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_kd_is_the_naive_loop(seed: int, temperature: float, classes: int, batch: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, batch, classes, dtype=torch.float64, generator=draw) * 4
    assert kd(s, t, temperature).item() == pytest.approx(naive_kd(s, t, temperature), rel=1e-9)


def every_loss() -> list[Any]:
    return [pytest.param(bind(name, 4.0, {}), id=name) for name in LOGIT_LOSSES]


@pytest.mark.parametrize("loss", every_loss())
@pytest.mark.parametrize("shape", [(1, 2), (1, 100), (7, 2), (8, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_give_finite_values_and_gradients(
    loss: Any, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(1)
    student = (100 * torch.randn(shape, generator=draw).sign()).to(dtype).requires_grad_()
    teacher = (100 * torch.randn(shape, generator=draw).sign()).to(dtype)
    labels = torch.arange(shape[0]) % shape[1]
    value = loss(student, teacher, labels, reduction="mean")
    (gradient,) = torch.autograd.grad(value, student)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", every_loss())
def test_losses_stay_in_float32_under_autocast(loss: Any) -> None:
    s, t, y = torch.randn(4, 10), torch.randn(4, 10), torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(s, t, y, reduction="mean")
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, loss(s, t, y, reduction="mean"))


@pytest.mark.parametrize("loss", every_loss())
def test_the_teacher_s_own_logits_cost_nothing(loss: Any) -> None:
    logits = torch.randn(6, 5)
    value = loss(logits, logits, torch.tensor([0, 1, 2, 3, 4, 0]), reduction="mean")
    assert value.item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("loss", every_loss())
def test_the_order_of_the_batch_does_not_matter(loss: Any) -> None:
    s, t, y = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(
        loss(s, t, y, reduction="mean"), loss(s[order], t[order], y[order], reduction="mean")
    )


@pytest.mark.parametrize("loss", every_loss())
def test_a_constant_added_to_all_logits_does_not_matter(loss: Any) -> None:
    s, t, y = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    torch.testing.assert_close(
        loss(s + 3, t - 2, y, reduction="mean"),
        loss(s, t, y, reduction="mean"),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", sorted(PER_SAMPLE))
def test_values_per_sample_average_to_the_mean(name: str) -> None:
    s, t, y = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    each = bind(name, 4.0, {})(s, t, y, reduction="none")
    assert each.shape == (6,)
    torch.testing.assert_close(each.mean(), bind(name, 4.0, {})(s, t, y, reduction="mean"))


def test_dist_has_no_value_for_a_single_image() -> None:
    with pytest.raises(InputError, match="no value for a single image"):
        dist(torch.randn(2, 3), torch.randn(2, 3), reduction="none")


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_temperature_out_of_range_is_refused(name: str, temperature: float) -> None:
    with pytest.raises(InputError, match="temperature must be above 0"):
        bind(name, temperature, {})


def test_options_are_bound_by_name() -> None:
    s, t, y = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    bound = bind("dkd", 4.0, {"beta": 2.0, "temperature": 3.0})(s, t, y, reduction="mean")
    torch.testing.assert_close(bound, dkd(s, t, y, beta=2.0, temperature=3.0))
    with pytest.raises(InputError, match="did you mean 'beta'"):
        bind("dkd", 4.0, {"betta": 2.0})
    with pytest.raises(InputError, match="must be a number"):
        bind("dkd", 4.0, {"beta": "high"})
    with pytest.raises(InputError, match="unknown logit loss 'dkb'; did you mean 'dkd'"):
        bind("dkb", 4.0, {})


@pytest.mark.parametrize("loss", every_loss())
def test_logits_of_two_shapes_are_refused(loss: Any) -> None:
    with pytest.raises(InputError, match=r"\[2, 3\] of the student, \[1, 3\] of the teacher"):
        loss(torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(2).long(), reduction="mean")


def test_a_reduction_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="unknown reduction 'sum'"):
        kd(torch.zeros(2, 3), torch.zeros(2, 3), reduction="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0, True, "2"])
def test_an_option_that_is_no_number_of_0_or_more_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="'beta' of the logit loss 'dkd' must be a number"):
        bind("dkd", 4.0, {"beta": value})
