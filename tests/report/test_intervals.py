"""Drawn intervals and their scales."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd.compare.statistics import interval
from dskd.report.intervals import Scale, draw, lowest_inlier, scale_of


def test_an_outlier_does_not_widen_the_scale() -> None:
    scale = scale_of([interval([value]) for value in (70.0, 71.0, 72.0, 10.0)], 1.0)
    assert scale == Scale(69.0, 73.0)
    outside = draw(interval([10.0, 10.5]), scale)
    assert (outside.mean, outside.seeds, outside.low) == (None, (), 0.0)
    inside = draw(interval([70.5, 71.5]), scale, sampling_error=1.0)
    assert (inside.mean, inside.band, inside.zero) == (50.0, (25.0, 75.0), None)
    assert (inside.low, inside.high) == (0.0, 100.0)  # the interval is wider than the scale


def test_differences_are_drawn_about_zero() -> None:
    scale = scale_of([interval([1.0, 1.0]), interval([3.0, 3.0])], 1.0, zero=True)
    assert draw(interval([1.0, 1.0]), scale).zero == pytest.approx(20.0)


@given(st.lists(st.floats(-100, 100), min_size=1))
def test_the_best_is_never_an_outlier(values: list[float]) -> None:
    lowest = lowest_inlier(values)
    assert min(values) <= lowest <= max(values)
    assert sum(value >= lowest for value in values) * 2 >= len(values)
