"""What a few seeds can say: intervals, paired differences, and how surprising they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its interval, which covers the noise of training from seed to seed.

    Attributes:
        mean: Over the seeds.
        half: Half the width of the 95 % interval (Student's t); None for a single seed.
        values: One a seed.
    """

    mean: float
    half: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """A method against another at the same seeds.

    Attributes:
        interval: Of the differences, seed by seed.
        p: Two-sided p-value of the paired t-test; None where there are too few seeds to say.
        p_holm: The same, adjusted for all the methods that are compared (Holm).
    """

    interval: Interval
    p: float | None
    p_holm: float | None = None


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of one value a seed.

    ``mean +- t(0.975, n - 1) * s / sqrt(n)`` with ``s`` the sample's standard deviation.

    Args:
        values: One a seed, at least one.

    Example:
        >>> round(interval([1.0, 2.0, 3.0]).half, 3)
        2.484
    """
    n = len(values)
    half = None
    if n > 1:
        quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)
        half = float(quantile * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(float(np.mean(values)), half, tuple(values))


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """A method's values minus the baseline's, seed by seed.

    Args:
        values: One a seed.
        baseline: At the same seeds, in the same order.

    Returns:
        The difference; without a p-value for a single seed. Where all differences are equal the
        t-test has no spread to measure by: p is 1 for no difference, else None.

    Example:
        >>> round(paired([2.0, 3.0, 5.0], [1.0, 1.0, 2.0]).p, 4)
        0.0742
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    if not any(differences):
        p: float | None = 1.0 if len(differences) > 1 else None
    elif len(differences) < 2 or np.ptp(differences) == 0:
        p = None
    else:
        p = float(stats.ttest_1samp(differences, 0).pvalue)
    return Difference(interval(differences), p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for their number: the chance of any false finding stays below the level.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.

    Args:
        p_values: None for what was not tested, which does not count and stays None.

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
    """How much further a method goes than the baseline does beyond the plain student, in percent.

    ``100 (method - baseline) / (baseline - student)``: the average relative improvement (ARI) of
    Chen et al., SemCKD, AAAI 2021, arXiv 2012.03236, for one pair, of mean accuracies.

    Returns:
        None where the baseline is not better than the student: then it says nothing.

    Example:
        >>> relative_improvement(74.0, 73.0, 71.0)
        50.0
    """
    gain = baseline - student
    return 100 * (method - baseline) / gain if gain > 0 else None


def sampling_error(accuracy: float, test_images: int) -> float:
    """Half the width of the 95 % interval that comes from the test set being a sample.

    Wilson's interval for a share of ``images``; the noise of training is not in it.

    Args:
        accuracy: In percent.
        images: Of the test split.

    Returns:
        In percentage points.

    Example:
        >>> round(sampling_error(75.0, 10_000), 2)
        0.85
    """
    hits = round(accuracy / 100 * test_images)
    share = stats.binomtest(hits, test_images).proportion_ci(CONFIDENCE, method="wilson")
    return float(100 * (share.high - share.low) / 2)
