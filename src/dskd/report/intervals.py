"""Intervals as small drawings in the cells of the HTML table, on one scale per column."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dskd.compare.statistics import Interval

_OUTLIER_FACTOR, _LEAST_SPREAD = 4, 1.0
"""A value is an outlier if it lies more than this factor further below the median than the best
value lies above it. That distance counts as one percentage point at least."""


@dataclass(frozen=True)
class Scale:
    """The range of values that the drawings of a column span.

    Attributes:
        low: The value at the left end.
        high: The value at the right end.
    """

    low: float
    high: float

    def at(self, value: float) -> float:
        """The position of a value from left to right in percent, clamped to the scale."""
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)

    def shows(self, value: float) -> bool:
        """Whether the value lies on the scale."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class DrawnInterval:
    """The drawing of an interval. All positions are in percent from left to right.

    Attributes:
        mean: The mean; None if it lies outside of the scale.
        seeds: The values of the seeds that lie on the scale.
        low: Left end of the interval over seeds.
        high: Right end of the interval over seeds.
        cut: Whether the interval goes on beyond the left and beyond the right end of the scale.
        band: Left and right end of the sampling error; None if it is not drawn.
        zero: The zero line; None if it is not drawn.
    """

    mean: float | None
    seeds: tuple[float, ...]
    low: float
    high: float
    cut: tuple[bool, bool] = (False, False)
    band: tuple[float, float] | None = None
    zero: float | None = None


def scale_of(intervals: Sequence[Interval], margin: float, *, zero: bool = False) -> Scale:
    """A scale for a column: it spans all seeds, and the intervals as far as seeds stay apart.

    Outliers are left out, so that the others can be told apart. An interval of two seeds may be
    many times as wide as their distance. So the scale ends at most as far beyond the seeds as they
    span.

    Args:
        intervals: The intervals of the column, at least one.
        margin: Added on both sides.
        zero: Whether the scale includes zero.
    """
    lowest = lowest_inlier([interval.mean for interval in intervals])
    inliers = [interval for interval in intervals if interval.mean >= lowest]
    seeds = [value for one in inliers for value in (one.mean, *one.values)] + [0.0] * zero
    low, high = min(seeds), max(seeds)
    reach = max(high - low, margin)
    ends = [one.mean + sign * (one.half or 0.0) for one in inliers for sign in (-1, 1)]
    low, high = max(min(low, *ends), low - reach), min(max(high, *ends), high + reach)
    return Scale(low - margin, high + margin)


def lowest_inlier(values: Sequence[float]) -> float:
    """The lowest of the values that are not far below the others.

    Example:
        >>> lowest_inlier([91.0, 90.0, 89.0, 12.0])
        89.0
    """
    median = statistics.median(values)
    reach = _OUTLIER_FACTOR * max(max(values) - median, _LEAST_SPREAD)
    return min(value for value in values if value >= median - reach)


def draw(interval: Interval, scale: Scale, sampling_error: float | None = None) -> DrawnInterval:
    """Draws an interval on the scale of its column.

    Args:
        interval: The interval over seeds.
        scale: The scale of the column.
        sampling_error: Half the interval due to the size of the test split; None to leave it out.
    """
    half = interval.half or 0.0
    mean = interval.mean
    band = None
    if sampling_error:
        band = (scale.at(mean - sampling_error), scale.at(mean + sampling_error))
    return DrawnInterval(
        scale.at(mean) if scale.shows(mean) else None,
        tuple(scale.at(value) for value in interval.values if scale.shows(value)),
        scale.at(mean - half),
        scale.at(mean + half),
        (mean - half < scale.low < mean, mean < scale.high < mean + half),
        band,
        scale.at(0.0) if scale.low < 0 < scale.high and sampling_error is None else None,
    )
