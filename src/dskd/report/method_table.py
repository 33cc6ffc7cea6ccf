"""The results table of the HTML page, and the notes below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dskd.compare import columns
from dskd.compare.columns import Column
from dskd.compare.notes import (
    COST,
    EQUAL,
    NO_LABELS,
    best_epoch_note,
    differences_note,
    has_equal_values,
    intervals_note,
    sampling_note,
    span,
    why_no_differences,
)
from dskd.compare.statistics import Interval
from dskd.compare.summary import BASELINE, Summary
from dskd.errors import printable
from dskd.report.contents import ReportContents
from dskd.report.intervals import DrawnInterval, Scale, draw, scale_of


def columns_of(baseline: str = BASELINE) -> tuple[Column, ...]:
    """The columns after the method's name.

    Args:
        baseline: Label of the method that the others are compared with.
    """
    return (
        *columns.results(baseline),
        columns.AGREEMENT,
        columns.PARAMETERS,
        columns.EXTRA_PARAMETERS,
        columns.SECONDS,
        columns.MEMORY,
    )


def columns_shown(contents: ReportContents) -> tuple[Column, ...]:
    """The columns in which a method of the report has a value."""
    return columns.with_values(columns_of(contents.collected.task.baseline), contents.summaries)


def key(contents: ReportContents) -> str:
    """What the drawings of intervals show, and that the table can be sorted."""
    text = "Dot: result."
    if any(len(s.seeds) > 1 for s in contents.summaries):
        text = "Dot: mean. Thin lines: seeds. Thick line: 95 % interval over seeds."
    if any(s.sampling_error for s in contents.summaries):
        text += " Grey: sampling error of the test split."
    if len(contents.summaries) == 1:
        return text
    return (
        f"{text} Each column has one scale. An arrow marks an interval that goes on beyond it, "
        "and ‹ a mean outside of it. Click a heading to sort the table."
    )


COLUMNS = columns_of()
"""The columns for images."""
SORTED_BY = columns.TEST_ACCURACY
"""The column by which the rows are sorted at first."""
_MISSING = "–"
_MARGIN = 0.5
"""Percentage points on both sides of the outermost means of a column, at least."""


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        text: Its text.
        value: The value to sort by; None sorts last.
        is_number: As in `dskd.compare.columns.Column`.
        drawing: An interval to draw below the text; None for none.
    """

    text: str
    value: float | str | None
    is_number: bool
    drawing: DrawnInterval | None = None


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: Label of the method.
        larger: Whether it deploys more than the plain student.
        cells: One for each of `columns_of`.
    """

    label: str
    larger: bool
    cells: tuple[Cell, ...]


def table_rows(contents: ReportContents) -> list[Row]:
    """A row for every method, in the order of the report."""
    errors = [s.sampling_error for s in contents.summaries if s.sampling_error]
    accuracies = _intervals(columns.TEST_ACCURACY, contents.summaries)
    baseline = contents.collected.task.baseline
    difference = columns.difference_to(baseline)
    differences = _intervals(difference, contents.summaries)
    scales = {}
    if accuracies:
        margin = max([_MARGIN, *errors])
        scales[columns.TEST_ACCURACY.key] = scale_of(accuracies, margin)
    if differences:
        scales[difference.key] = scale_of(differences, _MARGIN, zero=True)
    larger = {summary.label for summary in contents.larger_students()}
    shown = columns_shown(contents)
    return [
        Row(s.label, s.label in larger, tuple(_cell(column, s, scales) for column in shown))
        for s in contents.summaries
    ]


def _intervals(column: Column, summaries: Sequence[Summary]) -> list[Interval]:
    found = (column.interval(summary) for summary in summaries)
    return [interval for interval in found if interval is not None]


def _cell(column: Column, summary: Summary, scales: Mapping[str, Scale]) -> Cell:
    value, interval = column.value(summary), column.interval(summary)
    if value is None:
        return Cell(_MISSING, None, column.is_number)
    drawing = None
    if interval is not None and column.key in scales:
        error = summary.sampling_error if column == columns.TEST_ACCURACY else None
        drawing = draw(interval, scales[column.key], error)
    return Cell(column.text(summary), value, column.is_number, drawing)


def teacher_cells(contents: ReportContents) -> list[str]:
    """The row of the teacher: its accuracy and parameters, if they are known."""
    cost = contents.teacher_cost
    known = {
        columns.TEST_ACCURACY.key: span(contents.teacher_accuracies(), ".2f"),
        columns.PARAMETERS.key: f"{cost.parameters:,}" if cost else "",
    }
    shown = columns_shown(contents)
    return [known.get(column.key, "") for column in shown]


def notes(contents: ReportContents) -> list[str]:
    """What a reader of the table must know, as sentences."""
    found = (note(contents) for note in _NOTES)
    return [text for text in found if text]


def _best_epoch_note(contents: ReportContents) -> str:
    return best_epoch_note(result["best_chosen_on"] for result in contents.results())


def _differences_note(contents: ReportContents) -> str:
    baseline = contents.collected.task.baseline
    if len(contents.summaries) == 1:
        return ""
    if note := differences_note(contents.summaries, baseline):
        return note
    missing = ", no p and no ARI" if baseline == BASELINE else " and no p"
    reason = why_no_differences(contents.summaries, baseline)
    return f"There are no differences to {baseline}{missing}, since {reason}."


def _larger_students_note(contents: ReportContents) -> str:
    larger = contents.larger_students()
    plain = [s.parameters for s in contents.summaries if s not in larger and s.parameters]
    instead = f" instead of {min(plain):,}" if plain else ""
    sentences = [
        f"† {s.label} deploys more than the plain student: {s.parameters:,} parameters{instead}."
        for s in larger
    ]
    return " ".join(sentences)


def _teachers_note(contents: ReportContents) -> str:
    if contents.teachers() < 2:
        return ""
    return (
        "The runs had different teachers. A difference between methods is due to the methods alone "
        "only if they had the same teacher at each seed."
    )


def _near_chance_note(contents: ReportContents) -> str:
    right = contents.metric in ("accuracy", "agreement")
    return " ".join(
        f"The teacher {printable(teacher.name)} is no better than a guess: "
        + (
            f"it is right on {teacher.test_accuracy:.2f} % of the {teacher.test_images:,} test "
            "images."
            if right
            else f"its test accuracy is {teacher.test_accuracy:.2f} %."
        )
        for teacher in contents.teachers_near_chance()
    )


_NOTES: Sequence[Callable[[ReportContents], str]] = (
    lambda contents: NO_LABELS if contents.metric == "agreement" else "",
    lambda contents: intervals_note(contents.summaries, own_splits=contents.own_splits),
    lambda contents: EQUAL if has_equal_values(contents.summaries) else "",
    lambda contents: sampling_note(contents.summaries, contents.test_images),
    _best_epoch_note,
    _differences_note,
    lambda _: COST,
    _larger_students_note,
    _teachers_note,
    _near_chance_note,
)
