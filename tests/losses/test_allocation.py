"""Weights of the shallow losses: sum, scale, gradient, edge cases, ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed
from hypothesis import given, settings
from hypothesis import strategies as st

from dskd.errors import InputError
from dskd.losses.allocation import ALLOCATIONS, Allocation, allocate

LOSSES = st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=6)
RULES = st.sampled_from(ALLOCATIONS)


@given(LOSSES, RULES, st.floats(0.1, 10))
@settings(max_examples=200, deadline=None)
def test_weights_are_never_negative_and_sum_to_their_number(
    losses: list[float], rule: Allocation, tau: float
) -> None:
    weights = allocate(torch.tensor(losses), rule, tau)
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(len(losses), rel=1e-5)


@given(
    st.lists(st.floats(0.0625, 128, width=32), min_size=2, max_size=6),
    RULES,
    st.sampled_from([1e-30, 1e-6, 3.0, 1e6, 1e30]),
)
@settings(max_examples=200, deadline=None)
def test_a_constant_factor_changes_no_weight(
    losses: list[float], rule: Allocation, factor: float
) -> None:
    values = torch.tensor(losses)
    torch.testing.assert_close(
        allocate(factor * values, rule), allocate(values, rule), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_every_sample_has_weights_of_its_own(rule: Allocation) -> None:
    losses = torch.rand(3, 7)
    weights = allocate(losses, rule)
    torch.testing.assert_close(weights.sum(0), torch.full((7,), 3.0))
    for b in range(7):
        torch.testing.assert_close(weights[:, b], allocate(losses[:, b], rule))


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_one_branch_and_equal_and_zero_losses_weigh_one(rule: Allocation) -> None:
    assert allocate(torch.tensor([5.0]), rule).tolist() == [1.0]
    torch.testing.assert_close(allocate(torch.full((3,), 2.0), rule), torch.ones(3))
    torch.testing.assert_close(allocate(torch.zeros(3), rule), torch.ones(3))
    mixed = allocate(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), rule)
    torch.testing.assert_close(mixed[:, 0], torch.ones(2))


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_no_gradient_passes(rule: Allocation) -> None:
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not allocate(losses, rule).requires_grad


def test_the_rules_are_those_of_the_equations() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(allocate(losses, "proportional"), torch.tensor([0.5, 1.0, 1.5]))
    p = torch.softmax(torch.tensor([0.5, 1.0, 1.5]) / 2, 0)
    torch.testing.assert_close(allocate(losses, "hard-first", 2.0), 3 * p)
    torch.testing.assert_close(allocate(losses, "ca-mkd", 2.0), 3 * (1 - p) / 2)
    torch.testing.assert_close(allocate(losses, "easy-first", 2.0), 3 * p.flip(0))


def test_a_small_tau_is_sharp_and_a_large_one_uniform() -> None:
    losses = torch.tensor([1.0, 2.0])
    assert allocate(losses, "hard-first", 0.01).tolist() == pytest.approx([0, 2])
    assert allocate(losses, "hard-first", 1e4).tolist() == pytest.approx([1, 1], rel=1e-3)


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'hard-first'"):
        allocate(torch.ones(2), "hard_first")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tau must be above 0"):
        allocate(torch.ones(2), "hard-first", 0.0)


@pytest.mark.parametrize("rule", ALLOCATIONS)
def test_losses_that_rounding_put_below_zero_count_as_zero(rule: Allocation) -> None:
    weights = allocate(torch.tensor([-1e-8, 1e-8, 0.0]), rule)
    torch.testing.assert_close(weights, allocate(torch.tensor([0.0, 1e-8, 0.0]), rule))
    assert (weights >= 0).all()


def test_raw_losses_in_the_softmax_and_a_sum_of_one() -> None:
    losses = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    raw = allocate(losses, "hard-first", 2.0, "raw", "one")
    torch.testing.assert_close(raw, torch.softmax(losses / 2, 0))
    torch.testing.assert_close(
        allocate(losses, "easy-first", 2.0, "raw"), 3 * torch.softmax(-losses / 2, 0)
    )
    torch.testing.assert_close(
        allocate(losses, "ca-mkd", 1.0, "raw"), 3 * (1 - torch.softmax(losses, 0)) / 2
    )
    for rule in ALLOCATIONS:
        torch.testing.assert_close(
            allocate(losses, rule, weight_sum="one"), allocate(losses, rule) / 3
        )
    torch.testing.assert_close(allocate(losses, scale="raw"), allocate(losses))


@pytest.mark.parametrize("rule", ALLOCATIONS)
@pytest.mark.parametrize(
    "values", [[1e38, 1.0], [torch.inf, 1.0], [torch.nan, 1.0], [0.0, 0.0], [1e-38, 2e-38]]
)
def test_raw_weights_are_finite_whatever_the_losses(rule: Allocation, values: list[float]) -> None:
    for tau in (1e-40, 1.0, 1e40):
        weights = allocate(torch.tensor(values), rule, tau, "raw")
        assert weights.isfinite().all()
        assert weights.sum().item() == pytest.approx(2)


def test_unknown_scales_and_sums_are_refused() -> None:
    unknown: Any = "rawer"
    with pytest.raises(InputError, match="raw"):
        allocate(torch.ones(2), scale=unknown)
    with pytest.raises(InputError, match="sum of the weights"):
        allocate(torch.ones(2), weight_sum=unknown)
