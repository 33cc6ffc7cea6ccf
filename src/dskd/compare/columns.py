"""The columns of a results table, defined once for the terminal, HTML, CSV, JSON and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dskd.compare.statistics import Difference, Interval
from dskd.compare.summary import BASELINE, STUDENT, Summary

MISSING = "-"
"""The text of a missing value."""


@dataclass(frozen=True)
class Column:
    """A column of a results table: what it shows of a `Summary`.

    Attributes:
        key: Unique name, used in CSV and JSON.
        name: Heading for a reader.
        description: What the column holds, in a few words.
        value: The value to sort by; None if it is missing.
        text: The value as text; `MISSING` if it is missing.
        fields: The value as named plain values for CSV and JSON, all digits included.
        interval: The interval over seeds whose mean is the value; None for other values.
        is_number: Whether values are numbers, which are aligned to the right.

    Example:
        >>> from dskd.compare.statistics import interval
        >>> kd = Summary("kd", "kd", {"ce": 1.0}, (0, 1), {}, interval([95.0, 96.0]))
        >>> TEST_ACCURACY.name, TEST_ACCURACY.text(kd), TEST_ACCURACY.value(kd)
        ('test accuracy, %', '95.50 ± 6.35', 95.5)
    """

    key: str
    name: str
    description: str
    value: Callable[[Summary], float | str | None]
    text: Callable[[Summary], str]
    fields: Callable[[Summary], Mapping[str, Any]]
    interval: Callable[[Summary], Interval | None] = lambda _: None
    is_number: bool = True


def with_values(shown: Iterable[Column], summaries: Sequence[Summary]) -> tuple[Column, ...]:
    """The columns in which a method has a value.

    The test accuracy stays, and so does p with several seeds, where a dash says that there is none.

    Args:
        shown: The columns of a table.
        summaries: Its rows.
    """
    stays = {TEST_ACCURACY.key}
    if any(one.difference and len(one.difference.interval.values) > 1 for one in summaries):
        stays.add(P_VALUE.key)
    return tuple(
        column
        for column in shown
        if column.key in stays or any(column.value(one) not in (None, "") for one in summaries)
    )


def weights_text(weights: Mapping[str, float]) -> str:
    """Loss weights in one line.

    Example:
        >>> weights_text({"ce": 1.0, "weight": 1000.0})
        'ce=1 weight=1000'
    """
    return " ".join(f"{name}={value:g}" for name, value in weights.items())


def interval_text(value: Interval | None, sign: str = "") -> str:
    """Mean and half-width, as in ``95.30 ± 0.41``; without an interval the mean alone.

    Args:
        value: The interval.
        sign: ``+`` to show the sign of a positive mean too.
    """
    return MISSING if value is None else value.text(sign)


def p_text(difference: Difference | None) -> str:
    """The adjusted p-value, as in ``0.031`` or ``<0.001``."""
    if difference is None or difference.p_holm is None:
        return MISSING
    return "<0.001" if difference.p_holm < 0.001 else f"{difference.p_holm:.3f}"


def number_column(
    key: str,
    name: str,
    description: str,
    value: Callable[[Summary], float | None],
    form: str,
    unit: float = 1,
) -> Column:
    """A column of numbers.

    Args:
        key: See `Column`.
        name: See `Column`.
        description: See `Column`.
        value: The number.
        form: The format of its text, such as ``,.1f``.
        unit: What the text counts in: 1e6 for megabytes of a number of bytes.
    """

    def text(summary: Summary) -> str:
        number = value(summary)
        return MISSING if number is None else format(number if unit == 1 else number / unit, form)

    return Column(key, name, description, value, text, lambda summary: {key: value(summary)})


def _interval_column(
    key: str,
    name: str,
    description: str,
    interval: Callable[[Summary], Interval | None],
    sign: str = "",
    more: Callable[[Summary], Mapping[str, Any]] = lambda _: {},
) -> Column:
    """A column of means over seeds with their intervals; ``more`` gives further fields."""

    def value(summary: Summary) -> float | None:
        found = interval(summary)
        return None if found is None else found.mean

    def fields(summary: Summary) -> dict[str, Any]:
        found = interval(summary)
        return {
            key: found.mean if found else None,
            f"{key}_half": found.half if found else None,
            f"{key}_seeds": list(found.values) if found else [],
            **more(summary),
        }

    def text(summary: Summary) -> str:
        return interval_text(interval(summary), sign)

    return Column(key, name, description, value, text, fields, interval)


def _seeds_text(s: Summary) -> str:
    return str(len(s.seeds)) + (f" of {len(s.seeds) + len(s.failed)}" if s.failed else "")


METHOD = Column(
    "method",
    "method",
    "the method, with the settings that distinguish it",
    value=lambda s: s.label,
    text=lambda s: s.label,
    fields=lambda s: {"method": s.label},
    is_number=False,
)
WEIGHTS = Column(
    "weights",
    "weights",
    "weights of the losses",
    value=lambda s: weights_text(s.weights),
    text=lambda s: weights_text(s.weights),
    fields=lambda s: {f"weight_{name}": value for name, value in s.weights.items()},
    is_number=False,
)
SEEDS = Column(
    "seeds",
    "seeds",
    "finished seeds",
    value=lambda s: len(s.seeds),
    text=_seeds_text,
    fields=lambda s: {
        "seeds": len(s.seeds),
        "seed_numbers": list(s.seeds),
        "failed": {str(seed): reason for seed, reason in s.failed.items()},
    },
)
TEST_ACCURACY = _interval_column(
    "test_accuracy",
    "test accuracy, %",
    "top-1 accuracy on the test split after the last epoch",
    lambda s: s.test_accuracy,
    more=lambda s: {"test_accuracy_sampling_error": s.sampling_error},
)
BEST_TEST_ACCURACY = _interval_column(
    "best_test_accuracy",
    "best epoch, %",
    "top-1 accuracy on the test split after the best epoch",
    lambda s: s.best_test_accuracy,
)


def difference_to(baseline: str) -> Column:
    """The column of the differences to a baseline."""
    return _interval_column(
        f"difference_to_{baseline}",
        f"vs. {baseline}",
        f"test accuracy minus that of {baseline}, in percentage points",
        lambda s: s.difference.interval if s.difference else None,
        sign="+",
    )


def p_value_of(baseline: str) -> Column:
    """The column of the p-values of the differences to a baseline."""
    return Column(
        "p_holm",
        "p (Holm)",
        f"p-value of the difference to {baseline}, adjusted for the number of methods",
        value=lambda s: s.difference.p_holm if s.difference else None,
        text=lambda s: p_text(s.difference),
        fields=lambda s: {
            "p": s.difference.p if s.difference else None,
            "p_holm": s.difference.p_holm if s.difference else None,
        },
    )


DIFFERENCE, P_VALUE = difference_to(BASELINE), p_value_of(BASELINE)
ARI = number_column(
    "ari",
    "ARI, %",
    f"average relative improvement: gain over {BASELINE} relative to its gain over {STUDENT}",
    lambda s: s.improvement,
    "+.0f",
)
AGREEMENT = _interval_column(
    "agreement",
    "agreement, %",
    "test predictions that are those of the teacher",
    lambda s: s.agreement,
)
PARAMETERS = number_column(
    "parameters", "parameters", "parameters of the deployed student", lambda s: s.parameters, ","
)
EXTRA_PARAMETERS = number_column(
    "extra_parameters",
    "extra",
    "parameters trained with the student and not deployed",
    lambda s: s.extra_parameters,
    ",",
)
SECONDS = number_column(
    "student_seconds",
    "student's seconds",
    "training time of a seed, without the teacher's training and outputs",
    lambda s: s.seconds,
    ",.1f",
)
MEMORY = number_column(
    "memory_bytes",
    "memory, MB",
    "memory of a training step, without that of the teacher",
    lambda s: s.memory,
    ",.1f",
    unit=1e6,
)
RESULTS = (WEIGHTS, SEEDS, TEST_ACCURACY, BEST_TEST_ACCURACY, DIFFERENCE, P_VALUE, ARI)
"""The columns that every table of images begins with, after the method's name."""


def results(baseline: str) -> tuple[Column, ...]:
    """The columns that every table begins with, after the method's name.

    Args:
        baseline: Label of the method that the others are compared with. Only with that of images
            is there a student by labels, which the average relative improvement needs.
    """
    if baseline == BASELINE:
        return RESULTS
    return (
        *(WEIGHTS, SEEDS, TEST_ACCURACY, BEST_TEST_ACCURACY),
        *(difference_to(baseline), p_value_of(baseline)),
    )
