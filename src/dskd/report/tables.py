"""The numbers of a report as rows: for the page, for CSV and for LaTeX."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dskd.compare.statistics import Interval
from dskd.compare.summary import BASELINE, Summary
from dskd.compare.table import interval_text, p_text, weights_text
from dskd.report.cost import Cost

_MINUS = re.compile(r"(?<![\w.)])-(?=[\d.])")
_MARGIN, _LEAST = 4, 1.0
"""Usual is what lies at most so many times as far below the median as the best lies above it, which
counts as a point at least."""


@dataclass(frozen=True)
class Scale:
    """What the drawn intervals of a column span.

    Attributes:
        low: At the left end.
        high: At the right end.
    """

    low: float
    high: float

    def at(self, value: float) -> float:
        """Where a value lies from left to right, in percent, kept inside."""
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)

    def shows(self, value: float) -> bool:
        """Whether the value lies inside."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Drawn:
    """An interval as the page draws it; all in percent from left to right.

    Attributes:
        mean: Of the seeds; None where it lies outside of the scale.
        seeds: Each seed that lies inside.
        low: Left end of the interval over seeds.
        high: Right end.
        band: Left and right end of the sampling error; None where it is not drawn.
        zero: Where zero lies; None where it is not drawn.
    """

    mean: float | None
    seeds: tuple[float, ...]
    low: float
    high: float
    band: tuple[float, float] | None = None
    zero: float | None = None


def scale_of(intervals: Sequence[Interval], room: float, *, zero: bool = False) -> Scale:
    """A scale for a column: one method that went wrong does not make the others a dot.

    Args:
        intervals: Of the column, at least one.
        room: Left free beside the outermost means.
        zero: Whether zero is to be in it.
    """
    means = [interval.mean for interval in intervals]
    low, high = lowest_usual(means), max(means)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    return Scale(low - room, high + room)


def lowest_usual(values: Sequence[float]) -> float:
    """The lowest of the values that are not far below the others.

    Example:
        >>> lowest_usual([91.0, 90.0, 89.0, 12.0])
        89.0
    """
    median = statistics.median(values)
    reach = _MARGIN * max(max(values) - median, _LEAST)
    return min(value for value in values if value >= median - reach)


def drawn(interval: Interval, scale: Scale, sampling: float | None = None) -> Drawn:
    """An interval on its column's scale.

    Args:
        interval: Over seeds.
        scale: Of the column.
        sampling: Half the interval that comes from the size of the test split.
    """
    half = interval.half or 0.0
    mean = interval.mean
    band = (scale.at(mean - sampling), scale.at(mean + sampling)) if sampling else None
    return Drawn(
        scale.at(mean) if scale.shows(mean) else None,
        tuple(scale.at(value) for value in interval.values if scale.shows(value)),
        scale.at(mean - half),
        scale.at(mean + half),
        band,
        scale.at(0.0) if scale.low < 0 < scale.high and sampling is None else None,
    )


def flat(summary: Summary, cost: Cost | None) -> dict[str, Any]:
    """A summary as one row of plain values; None where there is none."""
    difference = summary.difference
    return {
        "method": summary.label,
        **{f"weight_{name}": value for name, value in summary.weights.items()},
        "seeds": list(summary.seeds),
        "failed": {str(seed): reason for seed, reason in summary.failed.items()},
        **_interval("accuracy_last", summary.last),
        "accuracy_last_sampling_error": summary.sampling_error,
        **_interval("accuracy_best", summary.best),
        **_interval(f"difference_to_{BASELINE}", difference.interval if difference else None),
        "p": difference.p if difference else None,
        "p_holm": difference.p_holm if difference else None,
        "ari": summary.improvement,
        **_interval("agreement", summary.agreement),
        "parameters": summary.parameters,
        "extra_parameters": summary.extra_parameters,
        "multiply_adds": cost.multiply_adds if cost else None,
        "latency_ms": cost.latency if cost else None,
        "latency_batch64_ms": cost.latency_batch if cost else None,
        "seconds": summary.seconds,
        "memory_bytes": summary.memory,
    }


def _interval(name: str, interval: Interval | None) -> dict[str, Any]:
    return {
        name: interval.mean if interval else None,
        f"{name}_half": interval.half if interval else None,
        f"{name}_seeds": list(interval.values) if interval else [],
    }


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; lists are parted by spaces, what is not there is empty.

    Example:
        >>> print(as_csv([{"method": "kd", "seeds": [0, 1]}, {"method": "ce", "p": 0.5}]))
        method,seeds,p
        kd,0 1,
        ce,,0.5
        <BLANKLINE>
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _in_a_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _in_a_cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {inner}" for key, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else value


def as_latex(summaries: Sequence[Summary], costs: Mapping[str, Cost], images: int) -> str:
    r"""Three tables for ``\usepackage{booktabs}``: accuracy, cost, weights of the losses.

    Args:
        summaries: A row each.
        costs: By label.
        images: Of the test split.
    """
    error = max((s.sampling_error for s in summaries if s.sampling_error), default=0.0)
    accuracy = _latex_table(
        ["method", "seeds", "last epoch, %", "best epoch, %", f"against {BASELINE}", "$p$", "ARI"],
        [_accuracy_cells(s) for s in summaries],
        "Top-1 accuracy on the test split. Intervals of 95 % are over seeds: the noise of "
        f"training. The {images:,} test images add a sampling error of up to {error:.1f} "
        f"points, the same images for all. p: paired t-test against {BASELINE}, adjusted (Holm).",
    )
    cost = _latex_table(
        ["method", "agreement, %", "parameters", "beside", "multiply-adds", "seconds", "MB"],
        [_cost_cells(s, costs.get(s.label)) for s in summaries],
        "What a method takes. Parameters and multiply-adds are of the deployed student; seconds of "
        "training a seed and memory of a step are without the teacher's.",
    )
    weights = _latex_table(
        ["method", "weights"],
        [[s.label, weights_text(s.weights)] for s in summaries],
        "Weights of the losses.",
        others="l",
    )
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join([accuracy, cost, weights])


def _accuracy_cells(summary: Summary) -> list[str]:
    difference = summary.difference
    return [
        summary.label,
        str(len(summary.seeds)),
        interval_text(summary.last),
        interval_text(summary.best),
        interval_text(difference.interval, sign="+") if difference else "-",
        p_text(difference),
        _number(summary.improvement, "+.0f"),
    ]


def _cost_cells(summary: Summary, cost: Cost | None) -> list[str]:
    memory = summary.memory / 1e6 if summary.memory is not None else None
    return [
        summary.label,
        interval_text(summary.agreement),
        _number(summary.parameters, ","),
        _number(summary.extra_parameters, ","),
        _number(cost.multiply_adds if cost else None, ","),
        _number(summary.seconds, ",.1f"),
        _number(memory, ",.1f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _latex_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str, others: str = "r"
) -> str:
    # What is in dollars already is LaTeX.
    heads = [head if head.startswith("$") else latex(head) for head in columns]
    lines = [heads, *([latex(cell) for cell in row] for row in rows)]
    body = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{latex(caption)}}}",
            rf"\begin{{tabular}}{{l{others * (len(columns) - 1)}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def latex(text: str) -> str:
    r"""Text as LaTeX shows it, whatever is in it.

    Example:
        >>> print(latex("50 % of a_b: -1.5 ± 2"))
        50 \% of a\_b: $-$1.5 $\pm$ 2
    """
    escaped = "".join(_LATEX.get(letter, letter) for letter in text)
    return _MINUS.sub("$-$", escaped)
