"""Statistics over a few seeds: intervals, paired differences, adjusted p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
_ROUNDING = 1e-9
"""Values that differ by less than this part of the largest one are equal up to rounding."""

# scipy.stats is slow to import, so the functions import it when they need it.


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its confidence interval, which covers the noise of training.

    Attributes:
        mean: The mean.
        half: Half the width of the 95 % interval (Student's t); None for a single seed, and for
            equal values, whose spread says nothing about the noise.
        values: One value per seed.

    Example:
        >>> print(Interval(95.3, 0.412, (95.1, 95.5)))
        95.30 ± 0.41
    """

    mean: float
    half: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        return self.text()

    def text(self, sign: str = "") -> str:
        """Mean and half-width; without an interval the mean alone.

        Args:
            sign: ``+`` to show the sign of a positive mean too.
        """
        mean = f"{self.mean:{sign}.2f}"
        return mean if self.half is None else f"{mean} ± {self.half:.2f}"


@dataclass(frozen=True)
class Difference:
    """The difference between two methods at the same seeds.

    Attributes:
        interval: Mean and interval of the differences, seed by seed.
        p: Two-sided p-value of the paired t-test; None if it cannot be computed.
        p_holm: The p-value adjusted for the number of methods that are compared (Holm).
    """

    interval: Interval
    p: float | None
    p_holm: float | None = None


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence interval.

    ``mean +- t(0.975, n - 1) * s / sqrt(n)`` with ``s`` the sample standard deviation. There is no
    interval if all values are equal: that two seeds agree to the last digit is chance, and does not
    show that there is no noise.

    Args:
        values: One value per seed, at least one.

    Example:
        >>> round(interval([1.0, 2.0, 3.0]).half, 3)
        2.484
    """
    n = len(values)
    half = None
    if n > 1 and not _are_equal(values):
        from scipy import stats

        quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)
        half = float(quantile * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(float(np.mean(values)), half, tuple(values))


def _are_equal(values: Sequence[float]) -> bool:
    """Whether values are equal up to rounding: 91.2 - 90.2 is not quite 90.4 - 89.4."""
    return bool(np.ptp(values) <= _ROUNDING * max(1.0, np.abs(values).max()))


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Values of a method minus those of the baseline, with a paired t-test.

    Args:
        values: One value per seed of the method.
        baseline: Those of the baseline at the same seeds, in the same order.

    Returns:
        The difference. For a single seed it has no p-value. If all differences are equal, there
        is no interval and the t-test is undefined: p is 1 if they are zero, else None.

    Example:
        >>> round(paired([2.0, 3.0, 5.0], [1.0, 1.0, 2.0]).p, 4)
        0.0742
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    if not any(differences):
        p: float | None = 1.0 if len(differences) > 1 else None
    elif len(differences) < 2 or _are_equal(differences):
        p = None
    else:
        from scipy import stats

        p = float(stats.ttest_1samp(differences, 0).pvalue)
    return Difference(interval(differences), p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for their number, which controls the family-wise error rate.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.

    Args:
        p_values: The p-values. None means not tested: it does not count, and stays None.

    Returns:
        The adjusted p-values, in the same order.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    adjusted: list[float | None] = [None] * len(p_values)
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


def relative_improvement(method: float, baseline: float, student: float) -> float | None:
    """Gain of a method over the baseline, relative to that of the baseline over the student.

    ``100 (method - baseline) / (baseline - student)``: the average relative improvement (ARI) for
    a single pair of teacher and student.

    Source: Chen et al., SemCKD, AAAI 2021, arXiv 2012.03236.

    Args:
        method: Mean accuracy of the method.
        baseline: Mean accuracy of the baseline.
        student: Mean accuracy of the student trained on labels only.

    Returns:
        The improvement in percent; None if the baseline is not better than the student (up to
        rounding), since the ratio is then meaningless.

    Example:
        >>> relative_improvement(74.0, 73.0, 71.0)
        50.0
    """
    gain = baseline - student
    return 100 * (method - baseline) / gain if gain > _ROUNDING * abs(baseline) else None


def sampling_error(accuracy: float, test_images: int) -> float:
    """Half the width of the 95 % interval of an accuracy on a finite test split.

    This is Wilson's interval for a proportion. It does not include the noise of training.

    Args:
        accuracy: The accuracy in percent.
        test_images: Size of the test split.

    Returns:
        The half-width in percentage points.

    Example:
        >>> round(sampling_error(75.0, 10_000), 2)
        0.85
    """
    from scipy import stats

    hits = round(accuracy / 100 * test_images)
    share = stats.binomtest(hits, test_images).proportion_ci(CONFIDENCE, method="wilson")
    return float(100 * (share.high - share.low) / 2)
