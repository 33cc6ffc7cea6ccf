"""The page's table: a row a method, what its columns mean, and the notes below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dskd.compare.statistics import Interval
from dskd.compare.summary import BASELINE, STUDENT, Summary
from dskd.compare.table import interval_text, p_text, weights_text
from dskd.report.contents import Report
from dskd.report.tables import Drawn, Scale, drawn, scale_of

_NONE = "–"
_ROOM = 0.5
"""Percentage points beside the outermost means of a column, at least."""


@dataclass(frozen=True)
class Column:
    """A column after the method's name.

    Attributes:
        head: Its short name.
        title: What it holds, in a few words.
        number: Whether it is to the right, and sorted from the largest first.
    """

    head: str
    title: str
    number: bool = True


@dataclass(frozen=True)
class Cell:
    """What stands in a cell.

    Attributes:
        text: As it is read.
        value: What it is sorted by; None sorts last.
        number: As in `Column`.
        drawn: An interval to draw below the text.
    """

    text: str
    value: float | str | None
    number: bool = True
    drawn: Drawn | None = None


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        label: Of the method.
        larger: Whether it deploys more than the plain student.
        cells: In the order of `COLUMNS`.
    """

    label: str
    larger: bool
    cells: tuple[Cell, ...]


COLUMNS = (
    Column("weights", "weights of the losses", number=False),
    Column("seeds", "seeds that are finished"),
    Column("last epoch, %", "accuracy on the test split after the last epoch"),
    Column("best epoch, %", "accuracy on the test split after the best epoch"),
    Column(
        f"against {BASELINE}", f"accuracy of the last epoch minus that of {BASELINE}, in points"
    ),
    Column("p (Holm)", f"p-value of the difference to {BASELINE}, adjusted"),
    Column("ARI, %", f"gain over {BASELINE} relative to its gain over {STUDENT}"),
    Column("agreement, %", "test images that student and teacher give the same class"),
    Column("parameters", "of the deployed student"),
    Column("extra", "parameters trained beside the student and not deployed"),
    Column("seconds", "of training a seed, without the teacher's"),
    Column("memory, MB", "of a training step, without the teacher's"),
)
SORTED = 2
"""Which of the columns the rows come sorted by."""


def table_rows(report: Report) -> list[Row]:
    """A row for every method, in the report's order."""
    lasts = [s.last for s in report.summaries if s.last]
    gains = [s.difference.interval for s in report.summaries if s.difference]
    errors = [s.sampling_error for s in report.summaries if s.sampling_error]
    scales = (
        scale_of(lasts, max([_ROOM, *errors])) if lasts else None,
        scale_of(gains, _ROOM, zero=True) if gains else None,
    )
    larger = {summary.label for summary in report.larger()}
    return [Row(s.label, s.label in larger, _cells(s, *scales)) for s in report.summaries]


def _cells(s: Summary, lasts: Scale | None, gains: Scale | None) -> tuple[Cell, ...]:
    difference = s.difference
    gain = difference.interval if difference else None
    memory = s.memory / 1e6 if s.memory is not None else None
    seeds = str(len(s.seeds)) + (f" of {len(s.seeds) + len(s.failed)}" if s.failed else "")
    return (
        Cell(weights_text(s.weights), weights_text(s.weights), number=False),
        Cell(seeds, len(s.seeds)),
        _interval_cell(s.last, lasts, sampling=s.sampling_error),
        _interval_cell(s.best),
        _interval_cell(gain, gains, sign="+"),
        Cell(p_text(difference).replace("-", _NONE), difference.p_holm if difference else None),
        _number_cell(s.improvement, "+.0f"),
        _interval_cell(s.agreement),
        _number_cell(s.parameters, ","),
        _number_cell(s.extra_parameters, ","),
        _number_cell(s.seconds, ",.1f"),
        _number_cell(memory, ",.1f"),
    )


def _interval_cell(
    interval: Interval | None,
    scale: Scale | None = None,
    *,
    sign: str = "",
    sampling: float | None = None,
) -> Cell:
    if interval is None:
        return Cell(_NONE, None)
    image = drawn(interval, scale, sampling) if scale else None
    return Cell(interval_text(interval, sign), interval.mean, drawn=image)


def _number_cell(value: float | None, form: str) -> Cell:
    return Cell(_NONE, None) if value is None else Cell(f"{value:{form}}", value)


def teacher_cells(report: Report) -> list[str]:
    """The teacher's row: its accuracy and its parameters, as far as they are known."""
    accuracies = report.teacher_accuracies()
    cost = report.teacher_cost
    known = {
        "last epoch, %": span(accuracies, ".2f"),
        "parameters": f"{cost.parameters:,}" if cost else "",
    }
    return [known.get(column.head, "") for column in COLUMNS]


def notes(report: Report) -> list[str]:
    """What a reader of the table must know."""
    found = (part(report) for part in _NOTES)
    return [note for note in found if note]


def _of_intervals(report: Report) -> str:
    return (
        "± is the 95 % interval over seeds (Student's t): it covers the noise of training, and "
        "not that the test images are a sample."
    )


def _of_sampling(report: Report) -> str:
    errors = [s.sampling_error for s in report.summaries if s.sampling_error is not None]
    if not errors:
        return ""
    return (
        f"The sampling error of the {report.images:,} test images comes beside it: "
        f"± {span(errors, '.1f')} points (95 %, Wilson). All methods are tested on the same "
        "images."
    )


def _of_best(report: Report) -> str:
    chosen = sorted({result["best_chosen_on"] for result in report.results()})
    if not chosen:
        return ""
    flattered = "; it flatters every method" if "test" in chosen else ""
    return f"The best epoch is chosen on the {' or '.join(chosen)} split{flattered}."


def _of_differences(report: Report) -> str:
    if not any(s.difference for s in report.summaries):
        return f"There is no finished run of {BASELINE}: no differences to it, no p, no ARI."
    return (
        f"Differences to {BASELINE} are taken seed by seed, at the last epoch; p is that of a "
        "paired t-test, adjusted for the number of methods (Holm). ARI: gain over "
        f"{BASELINE} relative to {BASELINE}'s gain over {STUDENT}."
    )


def _of_costs(report: Report) -> str:
    return (
        "Extra: parameters trained beside the student and not deployed. Seconds of training a "
        "seed and memory of a training step are without the teacher's."
    )


def _of_larger(report: Report) -> str:
    larger = report.larger()
    plain = [s.parameters for s in report.summaries if s not in larger and s.parameters]
    without = f", {min(plain):,} without" if plain else ""
    sentences = [
        f"† {s.label} deploys more than the plain student: {s.parameters:,} parameters{without}."
        for s in larger
    ]
    return " ".join(sentences)


def _of_teachers(report: Report) -> str:
    if len(report.teacher_accuracies()) < 2:
        return ""
    return (
        "The runs had different teachers; a difference between methods is theirs alone only where "
        "they shared one at each seed."
    )


_NOTES: Sequence[Callable[[Report], str]] = (
    _of_intervals,
    _of_sampling,
    _of_best,
    _of_differences,
    _of_costs,
    _of_larger,
    _of_teachers,
)


def span(values: Sequence[float], form: str) -> str:
    """The least and the largest value, once where they look the same.

    Example:
        >>> span([95.21, 94.8, 95], ".1f"), span([95.21, 95.24], ".1f"), span([], ".1f")
        ('94.8 to 95.2', '95.2', '')
    """
    ends = [format(end, form) for end in (min(values), max(values))] if values else []
    return " to ".join(dict.fromkeys(ends))
