"""The results table in the terminal, and the notes below it."""

from __future__ import annotations

from collections.abc import Sequence

from dskd.compare import columns
from dskd.compare.grid import Grid
from dskd.compare.notes import (
    COST,
    EQUAL,
    NO_LABELS,
    best_epoch_note,
    differences_note,
    has_equal_values,
    intervals_note,
    sampling_note,
)
from dskd.compare.reader import Comparison
from dskd.compare.summary import BASELINE, Summary, samples_of
from dskd.errors import InputError
from dskd.storage.metric_names import Metric, in_text, metric_of


def _columns(baseline: str) -> tuple[columns.Column, ...]:
    costs = (columns.PARAMETERS, columns.EXTRA_PARAMETERS, columns.SECONDS, columns.MEMORY)
    return (columns.METHOD, *columns.results(baseline), *costs)


COLUMNS = _columns(BASELINE)
"""The columns for images."""


def summary_table(
    summaries: Sequence[Summary], metric: Metric = "accuracy", baseline: str = BASELINE
) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows, one row per method.

    Args:
        summaries: The methods.
        metric: What is measured.
        baseline: Label of the method that the others are compared with.
    """
    shown = columns.with_values(_columns(baseline), summaries)
    rows = [[column.text(summary) for column in shown] for summary in summaries]
    return [in_text(column.name, metric) for column in shown], rows


def check_results(grid: Grid, comparison: Comparison) -> None:
    """Refuses a comparison of which no run has a result.

    Args:
        grid: What was asked for.
        comparison: What became of it.

    Raises:
        InputError: Every run failed.
    """
    asked = [variant.label for variant in grid.variants]
    if not any(one.results for one in comparison.variants if one.label in asked):
        raise InputError(f"every run in {grid.path} failed; the lines above say why")


def notes(comparison: Comparison, summaries: Sequence[Summary]) -> list[str]:
    """What a reader of the table must know, one line per note."""
    differences = differences_note(summaries, comparison.baseline)
    equal = EQUAL if has_equal_values(summaries) else ""
    sampling = sampling_note(summaries, comparison.test_images)
    own_splits = comparison.facts["recipe"]["data"].get("split_seed", 0) is None
    intervals = intervals_note(summaries, own_splits=own_splits)
    best = best_epoch_note(
        result["best_chosen_on"] for one in comparison.variants for result in one.results.values()
    )
    lines = [intervals, equal, sampling, best, differences, COST]
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
    task, path = comparison.task, comparison.path
    draw = f"dskd {task} report {path}" if task else f"dskd report {path}"
    where = f"The runs are in {path}. Draw a report of them with `{draw}`."
    metric: Metric = next((one.metric for one in summaries if one.seeds), "accuracy")
    lines = [in_text(line, metric, samples_of(task)) if task else line for line in lines]
    return [*filter(None, lines), where]
