"""From measured times to results: medians, floors and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from interleave import Times
from rows import Row

PAIR = "resnet32x4-resnet8x4"
"""The pair of the ratios."""

Result = dict[str, Any]
"""The numbers of a row or of a whole run, as the JSON has them."""


class Ratio(NamedTuple):
    """A ratio of the median seconds of two rows.

    Attributes:
        over: The row in the numerator.
        under: The row in the denominator.
        wanted: The bound.
        least: Whether the bound is a lower one.
        meaning: The meaning in words.
    """

    over: tuple[str, str]
    under: tuple[str, str]
    wanted: float
    least: bool
    meaning: str

    def holds(self, value: float) -> bool:
        """Whether a value is within the bound."""
        return value >= self.wanted if self.least else value <= self.wanted


RATIOS = {
    "kd_over_reference": Ratio(
        ("reference-kd", "float32"),
        ("kd", "bfloat16"),
        *(2.25, True, "the speed of KD relative to the reference"),
    ),
    "dskd_over_kd_time": Ratio(
        ("dskd", "bfloat16"),
        ("kd", "bfloat16"),
        *(1.15, False, "the time of a DSKD step relative to a KD step, both of this package"),
    ),
    "kd_cached_over_reference": Ratio(
        ("reference-kd", "float32"),
        ("kd-cached", "bfloat16"),
        *(5.0, True, "the speed of KD with a full cache of logits, relative to the reference"),
    ),
    "dskd_cached_over_reference": Ratio(
        ("reference-kd", "float32"),
        ("dskd-cached", "bfloat16"),
        *(
            5.0,
            True,
            "the speed of DSKD with a full cache of features, relative to KD of the reference",
        ),
    ),
}


def row_result(row: Row, times: Times, work: int, rate: float) -> Result:
    """The numbers of a row.

    Args:
        row: The row.
        times: Its measured times.
        work: Multiply-adds of a step.
        rate: Multiply-adds of the machine in a second, in the precision of the row.
    """
    seconds = [step.seconds for step in times.steps]
    low, _, high = quartiles(seconds)
    return {
        "pair": row.pair,
        "row": row.name,
        "precision": row.precision,
        "n": len(seconds),
        "seconds": statistics.median(seconds),
        "low": low,
        "high": high,
        "teacher_seconds": statistics.median(step.teacher for step in times.steps),
        "first_seconds": times.first,
        "build_seconds": row.build_seconds,
        "multiply_adds": work,
        "floor_seconds": work / rate,
        "all_seconds": [round(value, 6) for value in seconds],
    }


def ratios(rows: Sequence[Result]) -> dict[str, Result]:
    """Each of `RATIOS` whose rows were measured.

    ``value`` is the ratio of the medians. ``low`` and ``high`` are quartiles of the ratio in each
    round, so a machine that is slow for a while changes neither.

    Args:
        rows: The numbers of all rows.
    """
    measured = {(row["row"], row["precision"]): row for row in rows if row["pair"] == PAIR}
    found = {}
    for name, ratio in RATIOS.items():
        if ratio.over in measured and ratio.under in measured:
            over, under = measured[ratio.over], measured[ratio.under]
            rounds = zip(over["all_seconds"], under["all_seconds"], strict=True)
            low, _, high = quartiles([one / other for one, other in rounds])
            value = over["seconds"] / under["seconds"]
            found[name] = {
                "value": value,
                "low": low,
                "high": high,
                "n": over["n"],
                "wanted": f"{'>=' if ratio.least else '<='} {ratio.wanted:g}",
                "holds": ratio.holds(value),
            }
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The three quartiles.

    Args:
        values: One value or more.

    Example:
        >>> quartiles([3.0, 1.0, 2.0, 5.0, 4.0])
        (2.0, 3.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
