"""The results table in the terminal, and the notes below it."""

from __future__ import annotations

from collections.abc import Sequence

from dskd.compare import columns
from dskd.compare.notes import COST, DIFFERENCES, INTERVALS, sampling_note
from dskd.compare.reader import Comparison
from dskd.compare.summary import Summary

COLUMNS = (
    columns.METHOD,
    columns.WEIGHTS,
    columns.SEEDS,
    columns.TEST_ACCURACY,
    columns.BEST_TEST_ACCURACY,
    columns.DIFFERENCE,
    columns.P_VALUE,
    columns.ARI,
    columns.PARAMETERS,
    columns.EXTRA_PARAMETERS,
    columns.SECONDS,
    columns.MEMORY,
)


def summary_table(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows, one row per method."""
    rows = [[column.text(summary) for column in COLUMNS] for summary in summaries]
    return [column.name for column in COLUMNS], rows


def notes(comparison: Comparison, summaries: Sequence[Summary]) -> list[str]:
    """What a reader of the table must know, one line per note."""
    lines = [INTERVALS, sampling_note(summaries, comparison.test_images), DIFFERENCES, COST]
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
    return [
        *filter(None, lines),
        f"The runs are in {path}. Draw a report of them with `dskd report {path}`.",
    ]
