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


def test_all_seeds_and_intervals_of_usual_width_are_shown() -> None:
    """Also where means lie closer together than seeds do."""
    several = [interval(values) for values in ([0.0, 0.1, 0.2], [-0.8, -0.2, 3.0])]
    scale = scale_of(several, 0.5, zero=True)
    for one in several:
        drawn = draw(one, scale)
        assert len(drawn.seeds) == 3
        assert drawn.cut == (False, False)
        assert drawn.mean is not None
        assert 0 < drawn.low < drawn.mean < drawn.high < 100


def test_an_interval_that_goes_on_beyond_the_scale_is_marked() -> None:
    """The interval of two seeds is 12.7 times as wide as their distance."""
    wide, narrow = interval([97.0, 98.4]), interval([96.0, 96.2, 96.4])
    scale = scale_of([wide, narrow], 0.5)
    assert draw(wide, scale).cut == (True, True)
    assert len(draw(wide, scale).seeds) == 2
    assert draw(narrow, scale).cut == (False, False)
    right_alone = draw(interval([97.0, 97.1, 104.0]), Scale(80.0, 101.0))
    assert right_alone.cut == (False, True)


@given(st.lists(st.floats(-100, 100), min_size=1))
def test_the_best_is_never_an_outlier(values: list[float]) -> None:
    lowest = lowest_inlier(values)
    assert min(values) <= lowest <= max(values)
    assert sum(value >= lowest for value in values) * 2 >= len(values)
