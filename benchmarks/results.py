"""From times to what is said of them: medians, floors and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from rows import Row
from turns import Times

PAIR = "resnet32x4-resnet8x4"
"""The pair that the ratios are of."""

Result = dict[str, Any]
"""A row's numbers, or a whole run's, as the JSON holds them."""


class Ratio(NamedTuple):
    """A ratio of two rows' median seconds.

    Attributes:
        over: The row whose seconds are divided.
        under: The row that they are divided by.
        wanted: What it should be.
        least: Whether it should be that at least, or at most.
        meaning: In words.
    """

    over: tuple[str, str]
    under: tuple[str, str]
    wanted: float
    least: bool
    meaning: str

    def holds(self, value: float) -> bool:
        """Whether it is as wanted."""
        return value >= self.wanted if self.least else value <= self.wanted


RATIOS = {
    "kd_over_reference": Ratio(
        ("reference-kd", "float32"),
        ("kd", "bfloat16"),
        *(2.25, True, "how many of our KD steps fit into one of the reference's"),
    ),
    "dskd_over_kd_time": Ratio(
        ("dskd", "bfloat16"),
        ("kd", "bfloat16"),
        *(1.15, False, "how much longer a step of DSKD takes than one of KD, both ours"),
    ),
    "kd_kept_over_reference": Ratio(
        ("reference-kd", "float32"),
        ("kd-kept", "bfloat16"),
        *(5.0, True, "the same for KD from kept logits, all of them there already"),
    ),
    "dskd_kept_over_reference": Ratio(
        ("reference-kd", "float32"),
        ("dskd-kept", "bfloat16"),
        *(5.0, True, "DSKD from a bank that is full, against the reference's KD"),
    ),
}


def row_result(row: Row, times: Times, work: int, rate: float) -> Result:
    """A row's numbers.

    Args:
        row: The row.
        times: Its times.
        work: Multiply-adds of a step.
        rate: The machine's multiply-adds a second in the row's precision.
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
    """Each of `RATIOS` whose two rows are there: of the medians, and by rounds.

    Its ``low`` and ``high`` are quartiles over the rounds, of the two steps that a round
    has; so a machine that is slow for a while moves neither.
    """
    there = {(row["row"], row["precision"]): row for row in rows if row["pair"] == PAIR}
    found = {}
    for name, ratio in RATIOS.items():
        if ratio.over in there and ratio.under in there:
            over, under = there[ratio.over], there[ratio.under]
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
    """Three numbers between which the quarters of the values lie.

    Example:
        >>> quartiles([3.0, 1.0, 2.0, 5.0, 4.0])
        (2.0, 3.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
