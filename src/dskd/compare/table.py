"""The results table in the terminal, and the notes below it."""

from __future__ import annotations

from collections.abc import Sequence

from dskd.compare import columns
from dskd.compare.notes import (
    COST,
    EQUAL,
    INTERVALS,
    NO_LABELS,
    differences_note,
    has_equal_values,
    sampling_note,
)
from dskd.compare.reader import Comparison
from dskd.compare.summary import BASELINE, Summary
from dskd.storage.metric_names import Metric, in_text, metric_of

COLUMNS = (
    columns.METHOD,
    *columns.RESULTS,
    columns.PARAMETERS,
    columns.EXTRA_PARAMETERS,
    columns.SECONDS,
    columns.MEMORY,
)


def summary_table(
    summaries: Sequence[Summary], metric: Metric = "accuracy", baseline: str = BASELINE
) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows, one row per method.

    Args:
        summaries: The methods.
        metric: What is measured.
        baseline: Label of the method that the others are compared with.
    """
    shown = [one for one in COLUMNS if baseline == BASELINE or one is not columns.ARI]
    names = [one.name.replace(f"vs. {BASELINE}", f"vs. {baseline}") for one in shown]
    rows = [[column.text(summary) for column in shown] for summary in summaries]
    return [in_text(name, metric) for name in names], rows


def notes(comparison: Comparison, summaries: Sequence[Summary]) -> list[str]:
    """What a reader of the table must know, one line per note."""
    differences = differences_note(comparison.baseline)
    equal = EQUAL if has_equal_values(summaries) else ""
    sampling = sampling_note(summaries, comparison.test_images)
    lines = [INTERVALS, equal, sampling, differences, COST]
    if metric_of(comparison.facts["recipe"]) == "agreement":
        lines.insert(0, NO_LABELS)
    smallest = min((s.parameters for s in summaries if s.parameters), default=None)
    lines += [
        f"{s.label} deploys a larger student: {s.parameters:,} parameters instead of {smallest:,}."
        for s in summaries
        if s.parameters and smallest and s.parameters > smallest
    ]
    lines += [
        f"{s.label}, seed {seed}: failed; {reason}"
        for s in summaries
        for seed, reason in s.failed.items()
    ]
    path = comparison.path
    where = f"The runs are in {path}."
    if comparison.baseline == BASELINE:
        where += f" Draw a report of them with `dskd report {path}`."
    return [*filter(None, lines), where]
