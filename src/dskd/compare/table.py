"""The results table in the terminal, and the notes below it."""

from __future__ import annotations

from collections.abc import Sequence

from dskd.compare import columns
from dskd.compare.notes import COST, DIFFERENCES, INTERVALS, NO_LABELS, sampling_note
from dskd.compare.reader import Comparison
from dskd.compare.summary import Summary
from dskd.storage.metric_names import Metric, in_text, metric_of

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


def summary_table(
    summaries: Sequence[Summary], metric: Metric = "accuracy"
) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows, one row per method."""
    rows = [[column.text(summary) for column in COLUMNS] for summary in summaries]
    return [in_text(column.name, metric) for column in COLUMNS], rows


def notes(comparison: Comparison, summaries: Sequence[Summary]) -> list[str]:
    """What a reader of the table must know, one line per note."""
    lines = [INTERVALS, sampling_note(summaries, comparison.test_images), DIFFERENCES, COST]
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
    return [
        *filter(None, lines),
        f"The runs are in {path}. Draw a report of them with `dskd report {path}`.",
    ]
