"""The page of a check: its findings as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dskd.engine.check.findings import (
    CheckReport,
    CostFindings,
    DataFindings,
    LossFindings,
    StepFindings,
    TeacherFindings,
)
from dskd.models.stage_table import COLUMNS
from dskd.runtime.cores import TOLERATED
from dskd.runtime.memory import readable
from dskd.runtime.number_text import rounded

Rows = list[list[str]]
CLASSES = 10
"""With more classes, only the smallest and the largest are shown."""


def tables(report: CheckReport) -> Iterator[tuple[Sequence[str], Rows]]:
    """The tables of a check: the columns and the rows of each."""
    yield _counts(report.data)
    yield ["check", "found"], [*_data_rows(report.data), *_teacher_rows(report.teacher)]
    if any(report.stages.values()):
        models = report.stages.items()
        yield ["model", *COLUMNS], [[name, *one.cells()] for name, rows in models for one in rows]
    if report.losses:
        yield _losses(report.losses)
    if report.steps:
        yield _steps(report.steps)
    if report.cost is not None:
        yield ["needs", "about", "available"], _cost_rows(report.cost)


def _counts(data: DataFindings) -> tuple[Sequence[str], Rows]:
    """The counts of images: each class, or the extremes of many classes."""
    classes = list(data.splits[0].per_class)
    if len(classes) <= CLASSES:
        rows = [
            [one.split, str(one.images), *(str(one.per_class[name]) for name in classes)]
            for one in data.splits
        ]
        return ["split", "images", *classes], rows
    rows = []
    for one in data.splits:
        (few, fewest), (many, most) = one.extreme(False), one.extreme(True)
        extremes = [f"{fewest} ({few})", f"{most} ({many})"]
        rows.append([one.split, str(one.images), str(len(classes)), *extremes])
    return ["split", "images", "classes", "smallest class", "largest class"], rows


def _data_rows(data: DataFindings) -> Rows:
    channels, height, width = data.shape
    rows = [["data", f"{data.name}, images {channels}x{height}x{width}"]]
    if data.unlabelled:
        rows.append(["images without labels", str(data.unlabelled)])
    decoded = f" ({data.decoded} images were decoded)" if data.decoded else ""
    rows.append(["bad files", f"{len(data.bad_files)}{decoded}"])
    for one in data.shared:
        compared = f"{one.images} of {one.compared} (compared with {one.other_compared})"
        rows.append([f"{one.split} images also in {one.other}", compared])
    return rows


def _teacher_rows(teacher: TeacherFindings | None) -> Rows:
    if teacher is None:
        return []
    if teacher.accuracy is None:
        return [["teacher", f"{teacher.name}: {teacher.note}"]]
    accuracy = (
        f"{teacher.accuracy:.2f} ({teacher.low:.1f} to {teacher.high:.1f}), {teacher.images} images"
    )
    return [
        ["teacher", teacher.name],
        ["teacher's test accuracy, %", accuracy],
        ["teacher's class order", teacher.class_order],
    ]


def _losses(losses: Sequence[LossFindings]) -> tuple[Sequence[str], Rows]:
    places = list(losses[0].gradients)
    rows = [
        [one.name, rounded(one.value), *(rounded(one.gradients[name], 2) for name in places)]
        for one in losses
    ]
    return ["loss term", "value", *(f"gradient at {name}" for name in places)], rows


def _steps(steps: Sequence[StepFindings]) -> tuple[Sequence[str], Rows]:
    rows: Rows = []
    for one in steps:
        losses = f"{rounded(one.losses[0])} to {rounded(one.losses[-1])}" if one.losses else "-"
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in one.shares.items())
        speed = f"{one.images_per_second:.1f}" if one.seconds else "-"
        trained, taken = one.trained, f"{len(one.losses)} of {one.batch_size} images"
        rows.append([trained, taken, losses, speed, shares or "-", one.bottleneck or "-"])
    return ["training", "steps", "loss", "images/s", "time", "bottleneck"], rows


def _cost_rows(cost: CostFindings) -> Rows:
    rows = [
        [f"time of the {name}", _times(cost.free_core_seconds[name], spent), ""]
        for name, spent in cost.seconds.items()
    ]
    whole = _times(cost.total_free_core_seconds, cost.total_seconds)
    rows.append(["time of the run", whole, ""])
    rows.append(["memory", readable(cost.memory), readable(cost.memory_free)])
    for name, needed in cost.disk.items():
        rows.append([f"disk, {name}", readable(needed), readable(cost.disk_free[name])])
    return rows


def _times(short: float, long: float) -> str:
    """A time, or two if other work on the processor cores makes a difference.

    Example:
        >>> _times(90, 100), _times(30, 100)
        ('1 min 40 s', '30 s to 1 min 40 s')
    """
    if long - short <= TOLERATED * long or duration(short) == duration(long):
        return duration(long)
    return f"{duration(short)} to {duration(long)}"


def duration(seconds: float) -> str:
    """Formats a time.

    Example:
        >>> [duration(seconds) for seconds in (0.2, 5, 100, 5000, 200000)]
        ['under 1 s', '5 s', '1 min 40 s', '1 h 23 min', '2 d 7 h']
    """
    if seconds < 1:
        return "under 1 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
