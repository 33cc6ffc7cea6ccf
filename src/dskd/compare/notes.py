"""Notes for the reader of a results table, the same in the terminal, in HTML and in LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from dskd.compare.summary import BASELINE, STUDENT, Summary

INTERVALS = (
    "± is the 95 % confidence interval over seeds (Student's t). It covers the noise of training, "
    "not the sampling error of the test images."
)


def differences_note(baseline: str = BASELINE) -> str:
    """How methods are compared with the baseline.

    Args:
        baseline: Its label.
    """
    paired = (
        f"Differences to {baseline} are taken seed by seed, after the last epoch. p is from a "
        "paired t-test, adjusted for the number of methods (Holm)."
    )
    if baseline != BASELINE:
        return paired
    return (
        f"{paired} ARI, the average relative improvement, is the gain over {BASELINE} relative to "
        f"the gain of {BASELINE} over {STUDENT}."
    )


DIFFERENCES = differences_note()
COST = (
    "Extra parameters are trained with the student and not deployed. The student's seconds are "
    "the training time of a seed, memory is that of a training step, both without the teacher's."
)
EQUAL = (
    "A value without ± is equal at all seeds or known at one seed only, so no interval can be "
    "computed. From equal differences no p-value can be computed either, unless they are 0."
)
"""For a table in which `has_equal_values`."""
NO_LABELS = "The images have no labels, so ce is off."


def has_equal_values(summaries: Sequence[Summary]) -> bool:
    """Whether a method has a result that is the same at all of several seeds."""
    found = (
        one
        for s in summaries
        for one in (
            s.test_accuracy,
            s.best_test_accuracy,
            s.agreement,
            s.difference.interval if s.difference else None,
        )
    )
    return any(one is not None and one.half is None and len(one.values) > 1 for one in found)


def sampling_note(summaries: Sequence[Summary], test_images: int) -> str:
    """How large the sampling error of the test images is; empty without a result."""
    errors = [s.sampling_error for s in summaries if s.sampling_error is not None]
    if not errors:
        return ""
    return (
        f"The sampling error of the {test_images:,} test images is ± {span(errors, '.1f')} points "
        "(95 %, Wilson). All methods are tested on the same images."
    )


def span(values: Sequence[float], form: str) -> str:
    """The smallest and the largest value as text; one of them if both look the same.

    Example:
        >>> span([95.21, 94.8, 95], ".1f"), span([95.21, 95.24], ".1f"), span([], ".1f")
        ('94.8 to 95.2', '95.2', '')
    """
    ends = [format(end, form) for end in (min(values), max(values))] if values else []
    return " to ".join(dict.fromkeys(ends))
