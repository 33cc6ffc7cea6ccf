"""Notes for the reader of a results table, the same in the terminal, in HTML and in LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dskd.compare.statistics import Interval
from dskd.compare.summary import BASELINE, STUDENT, Summary

INTERVALS = (
    "± is the 95 % confidence interval over seeds (Student's t). It covers what changes with "
    "the seed, and not the choice of test images that all seeds share."
)
INTERVALS_OF_SPLITS = (
    "± is the 95 % confidence interval over seeds (Student's t). Each seed has a split of its own, "
    "so it covers the choice of test images, too."
)


def differences_note(summaries: Sequence[Summary], baseline: str = BASELINE) -> str:
    """How methods are compared with the baseline; empty if none is.

    Args:
        summaries: The methods.
        baseline: Its label.
    """
    if not any(one.difference for one in summaries):
        return ""
    text = f"Differences to {baseline} are taken seed by seed, after the last epoch."
    if any(one.difference and one.difference.p_holm is not None for one in summaries):
        text += " p is from a paired t-test, adjusted for the number of methods (Holm)."
    if all(one.improvement is None for one in summaries):
        return text
    return (
        f"{text} ARI, the average relative improvement, is the gain over {BASELINE} relative to "
        f"the gain of {BASELINE} over {STUDENT}."
    )


def why_no_differences(summaries: Sequence[Summary], baseline: str = BASELINE) -> str:
    """Why no method is compared with the baseline, as the end of a sentence.

    Args:
        summaries: The methods.
        baseline: Its label.
    """
    finished = [one for one in summaries if one.seeds]
    if any(one.label == baseline for one in finished):
        others = len(finished) > 1
        return f"no other method has a {f'seed of {baseline}' if others else 'result'}"
    if any(one.label.startswith(f"{baseline}:") for one in summaries):
        return f"{baseline} with the settings of the recipe is not among the methods"
    return f"no run of {baseline} is finished"


def best_epoch_note(chosen_on: Iterable[str]) -> str:
    """On which split the best epochs were chosen; empty if there is none.

    Args:
        chosen_on: The split of each run.
    """
    splits = sorted(set(chosen_on))
    if not splits:
        return ""
    biased = ", which makes its accuracy too optimistic" if "test" in splits else ""
    return f"The best epoch is chosen on the {' or '.join(splits)} split{biased}."


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


def intervals_note(summaries: Sequence[Summary], *, own_splits: bool = False) -> str:
    """What ± means; empty for a table without an interval.

    Args:
        summaries: The methods.
        own_splits: Whether each seed has a split of the data of its own.
    """
    if all(one.half is None for one in _results(summaries)):
        return ""
    return INTERVALS_OF_SPLITS if own_splits else INTERVALS


def has_equal_values(summaries: Sequence[Summary]) -> bool:
    """Whether a method has a result that is the same at all of several seeds."""
    return any(one.half is None and len(one.values) > 1 for one in _results(summaries))


def _results(summaries: Sequence[Summary]) -> Iterator[Interval]:
    """The means over seeds, with or without an interval."""
    for s in summaries:
        for one in (
            s.test_accuracy,
            s.best_test_accuracy,
            s.agreement,
            s.difference.interval if s.difference else None,
        ):
            if one is not None:
                yield one


def sampling_note(summaries: Sequence[Summary], test_images: int) -> str:
    """How large the sampling error of the test images is; empty without a result."""
    errors = [s.sampling_error for s in summaries if s.sampling_error is not None]
    if not errors:
        return ""
    same = " All methods are tested on the same images." if len(summaries) > 1 else ""
    return (
        f"The sampling error of the {test_images:,} test images is ± {span(errors, '.1f')} points "
        f"(95 %, Wilson).{same}"
    )


def span(values: Sequence[float], form: str) -> str:
    """The smallest and the largest value as text; one of them if both look the same.

    Example:
        >>> span([95.21, 94.8, 95], ".1f"), span([95.21, 95.24], ".1f"), span([], ".1f")
        ('94.8 to 95.2', '95.2', '')
    """
    ends = [format(end, form) for end in (min(values), max(values))] if values else []
    return " to ".join(dict.fromkeys(ends))
