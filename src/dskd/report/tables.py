"""The numbers of a report as CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dskd.compare import columns
from dskd.compare.columns import Column, number_column
from dskd.compare.notes import (
    EQUAL,
    best_epoch_note,
    differences_note,
    has_equal_values,
    intervals_note,
    sampling_note,
)
from dskd.compare.summary import BASELINE, Summary
from dskd.report.analysis import Unavailable
from dskd.report.collect import MethodRuns
from dskd.report.conclusions import details, headline
from dskd.report.contents import SHARED, ReportContents
from dskd.report.cost import BATCH, Cost
from dskd.report.environments import each_once

_MINUS = re.compile(r"(?<![\w.)])-(?=[\d.])")


def cost_columns(costs: Mapping[str, Cost]) -> tuple[Column, Column, Column]:
    """Columns of the inference cost: multiply-adds, latency of an image and of a batch.

    Args:
        costs: The cost of the deployed students by label.
    """

    def column(
        key: str, name: str, description: str, value: Callable[[Cost], float | None], form: str
    ) -> Column:
        def of(summary: Summary) -> float | None:
            cost = costs.get(summary.label)
            return None if cost is None else value(cost)

        return number_column(key, name, f"{description}, of the deployed student", of, form)

    return (
        column(
            "multiply_adds",
            "multiply-adds",
            "multiply-adds for one image",
            lambda cost: cost.multiply_adds,
            ",",
        ),
        column(
            "latency_ms",
            "latency, ms",
            "latency of one image",
            lambda cost: cost.latency,
            ",.2f",
        ),
        column(
            f"latency_batch{BATCH}_ms",
            f"latency of {BATCH}, ms",
            f"latency of {BATCH} images",
            lambda cost: cost.latency_batch,
            ",.1f",
        ),
    )


def plain_row(
    summary: Summary, costs: Mapping[str, Cost] | None, baseline: str = BASELINE
) -> dict[str, Any]:
    """A summary as one row of plain values; None for a missing value.

    Args:
        summary: The method.
        costs: The cost of the deployed students by label; None leaves its columns out.
        baseline: Label of the method that the others are compared with.
    """
    row: dict[str, Any] = {}
    for column in (
        columns.METHOD,
        *columns.results(baseline),
        columns.AGREEMENT,
        columns.PARAMETERS,
        columns.EXTRA_PARAMETERS,
        *(() if costs is None else cost_columns(costs)),
        columns.SECONDS,
        columns.MEMORY,
    ):
        row |= column.fields(summary)
    return row


def method_rows(contents: ReportContents) -> list[dict[str, Any]]:
    """A row of plain values for every method, see `plain_row`."""
    costs, baseline = contents.costs, contents.collected.task.baseline
    return [plain_row(summary, costs, baseline) for summary in contents.summaries]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV. The items of a list are separated by spaces; a missing value is empty.

    Example:
        >>> print(as_csv([{"method": "kd", "seed_numbers": [0, 1]}, {"method": "ce", "p": 0.5}]))
        method,seed_numbers,p
        kd,0 1,
        ce,,0.5
        <BLANKLINE>
    """
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _csv_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {inner}" for key, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else value


def as_json(contents: ReportContents) -> str:
    """All numbers of a report as JSON, without its images."""
    collected, analysis = contents.collected, contents.analysis
    baseline = collected.task.baseline
    measured = {
        "layer_similarity": analysis.similarities,
        "disagreements": analysis.disagreements,
        "mistakes": analysis.mistakes,
        "class_scores": analysis.class_scores,
    }
    values = {
        "headline": headline(contents.summaries, baseline),
        "details": details(contents.summaries, baseline),
        "test_images": contents.test_images,
        "methods": method_rows(contents),
        "settings": {m.label: dict(m.settings) for m in collected.methods},
        "epochs": {m.label: _curves(m) for m in collected.methods},
        "teacher": {
            "name": collected.recipe.teacher.name if collected.recipe.teacher else None,
            "test_accuracy": contents.teacher_accuracies(),
            "cost": asdict(contents.teacher_cost) if contents.teacher_cost else None,
        },
        **{key: _plain(value) for key, value in measured.items() if value is not None},
        "early_exits": None if analysis.exits is None else _plain(analysis.exits),
        "recipe": {k: v for k, v in collected.recipe.plain().items() if k in SHARED},
        "environments": each_once(collected.environments),
        "commands": [list(command) for command in collected.commands],
        "measured_on": {"processor": contents.machine["processor"], "threads": 1},
    }
    return _json_text(_finite(values)) + "\n"


def _curves(runs: MethodRuns) -> dict[int, dict[str, list[float | None]]]:
    """The metrics by seed and name, one value per epoch, without the digits of rounding errors."""
    return {
        seed: {
            key: [value if value is None else _rounded(value) for value in values]
            for key, values in columns.items()
        }
        for seed, columns in runs.metrics.items()
    }


def _rounded(value: float) -> float:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _json_text(value: Any, depth: int = 0) -> str:
    """JSON that stays readable and small: only the two outer levels are broken into lines."""
    if depth == 2 or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    margin = " " * (depth + 1)
    if isinstance(value, dict):
        items = (f"{json.dumps(str(k))}: {_json_text(v, depth + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(margin + item for item in items) + f"\n{margin[1:]}}}"
    lines = ",\n".join(margin + _json_text(one, depth + 1) for one in value)
    return f"[\n{lines}\n{margin[1:]}]"


def _finite(value: Any) -> Any:
    """Plain values with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(measurement: Any) -> Any:
    """A measurement as plain values. Of images the index alone is given."""
    if isinstance(measurement, Unavailable):
        return {"unavailable": measurement.reason}
    if isinstance(measurement, Sequence):
        return [_plain(one) for one in measurement]
    values = asdict(measurement)
    for pair in values.get("pairs", ()):
        pair["examples"] = [example["index"] for example in pair["examples"]]
    for error in values.get("worst", ()):
        del error["source"], error["small"]
    return values


def as_latex(
    summaries: Sequence[Summary],
    costs: Mapping[str, Cost] | None,
    test_images: int,
    baseline: str = BASELINE,
    *,
    own_splits: bool = False,
    best_chosen_on: Iterable[str] = (),
) -> str:
    r"""Three tables for ``\usepackage{booktabs}``: accuracy, cost, weights of the losses.

    Args:
        summaries: One row each.
        costs: The cost of the deployed students by label; None leaves multiply-adds out.
        test_images: Size of the test split.
        baseline: Label of the method that the others are compared with.
        own_splits: Whether each seed has a split of the data of its own.
        best_chosen_on: The split on which the best epoch of each run was chosen.
    """
    equal = EQUAL if has_equal_values(summaries) else ""
    sampling = sampling_note(summaries, test_images)
    compared = differences_note(summaries, baseline)
    intervals = intervals_note(summaries, own_splits=own_splits)
    notes = filter(None, [intervals, equal, sampling, best_epoch_note(best_chosen_on), compared])
    results = [one for one in columns.results(baseline) if one is not columns.WEIGHTS]
    accuracy = _latex_table(
        [columns.METHOD, *results],
        summaries,
        " ".join(["Top-1 accuracy on the test split.", *notes]),
    )
    multiply_adds = [] if costs is None else [cost_columns(costs)[0]]
    wanted = (
        columns.AGREEMENT,
        columns.PARAMETERS,
        columns.EXTRA_PARAMETERS,
        *multiply_adds,
        columns.SECONDS,
        columns.MEMORY,
    )
    shown = columns.with_values(wanted, summaries)
    described = [f"{one.name} ({one.description})" for one in shown]
    about = ": ".join(["Cost of the methods", *[", ".join(described)] * bool(described)])
    cost = _latex_table([columns.METHOD, *wanted], summaries, f"{about}.")
    weights = _latex_table([columns.METHOD, columns.WEIGHTS], summaries, "Weights of the losses.")
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join([accuracy, cost, weights])


def _latex_table(wanted: Sequence[Column], summaries: Sequence[Summary], caption: str) -> str:
    shown = columns.with_values(wanted, summaries)
    cells = [[column.text(summary) for column in shown] for summary in summaries]
    lines = [[column.name for column in shown], *cells]
    head, *body = [" & ".join(map(latex, line)) + r" \\" for line in lines]
    alignment = "".join("r" if column.is_number else "l" for column in shown)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{latex(caption)}}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
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
    r"""Any text, escaped for LaTeX.

    Example:
        >>> print(latex("50 % of a_b: -1.5 ± 2"))
        50 \% of a\_b: $-$1.5 $\pm$ 2
    """
    escaped = "".join(_LATEX.get(letter, letter) for letter in text)
    return _MINUS.sub("$-$", escaped)
