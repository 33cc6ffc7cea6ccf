"""Intervals, paired differences, adjustments: values computed elsewhere, and their edges."""

from __future__ import annotations

import pytest

from dskd.compare.statistics import (
    holm,
    interval,
    paired,
    relative_improvement,
    sampling_error,
)


def test_the_interval_is_student_s() -> None:
    # t(0.975, 4) = 2.776445; s = 1.581139; 2.776445 * 1.581139 / sqrt(5) = 1.963243
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.values) == (3.0, (1.0, 2.0, 3.0, 4.0, 5.0))
    assert found.half == pytest.approx(1.963243, abs=1e-6)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    assert (interval([90.0]).mean, interval([90.0]).half) == (90.0, None)


def test_the_paired_test_is_that_of_the_differences() -> None:
    # differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom, p = 0.0742
    found = paired([2.0, 3.0, 5.0], [1.0, 1.0, 2.0])
    assert found.interval.values == (1.0, 2.0, 3.0)
    assert found.p == pytest.approx(0.07418, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "baseline", "p"),
    [([1.0], [2.0], None), ([1.0, 2.0], [1.0, 2.0], 1.0), ([2.0, 3.0], [1.0, 2.0], None)],
)
def test_differences_without_spread_have_no_test(
    values: list[float], baseline: list[float], p: float | None
) -> None:
    assert paired(values, baseline).p == p


@pytest.mark.parametrize(
    ("values", "baseline"),
    [([2.0, 3.0], [1.0, 2.0]), ([91.2, 90.4], [90.2, 89.4]), ([91.1, 90.0], [91.1, 90.0])],
)
def test_equal_differences_have_no_interval_also_up_to_rounding(
    values: list[float], baseline: list[float]
) -> None:
    found = paired(values, baseline)
    assert found.interval.half is None
    assert found.p in (None, 1.0)
    assert "±" not in str(found.interval)


def test_differences_that_are_nearly_equal_have_an_interval() -> None:
    found = paired([91.0, 90.0], [90.0, 89.01])
    assert found.interval.half == pytest.approx(12.706205 * 0.005, rel=1e-6)


def test_holm_keeps_the_order_and_never_passes_one() -> None:
    # 4 tests: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 -> never below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_what_was_not_tested_out() -> None:
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]


def test_relative_improvement_needs_a_baseline_that_gains() -> None:
    assert relative_improvement(75.0, 73.0, 72.0) == 200.0
    assert relative_improvement(72.5, 73.0, 72.0) == -50.0
    assert relative_improvement(75.0, 71.0, 72.0) is None
    kd, ce = (89.72, 91.94, 92.50), (90.83, 92.22, 91.11)  # the same sum, in another order
    means = [sum(values) / 3 for values in (kd, ce)]
    assert relative_improvement(95.0, max(means), min(means)) is None


def test_sampling_error_shrinks_with_the_root_of_the_images() -> None:
    small, large = sampling_error(80.0, 1_000), sampling_error(80.0, 100_000)
    assert small / large == pytest.approx(10, rel=0.01)
    assert sampling_error(100.0, 50) > 0  # a perfect score on a few images is not certain
