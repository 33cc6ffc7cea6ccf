"""The sections of the page with charts: each has a text, charts and captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go

from dskd.compare.notes import span
from dskd.compare.summary import STUDENT
from dskd.report import charts
from dskd.report.analysis import ModelCosts, Unavailable, shallow_stages
from dskd.report.charts import Curve
from dskd.report.cka import LayerSimilarity
from dskd.report.collect import MethodRuns
from dskd.report.contents import ReportContents
from dskd.report.cost import BATCH, Cost
from dskd.report.intervals import lowest_inlier
from dskd.report.styles import TEACHER, Style
from dskd.runtime.number_text import rounded

ALL_SHOWN, BEST_SHOWN = 8, 3
"""Up to `ALL_SHOWN` methods are all shown at first; of more, the `BEST_SHOWN` best among others."""
_TEACHER, _STUDENT = "teacher", "student"
_SHARED = (
    " Methods whose students cost the same share a row; its accuracies are those of all of them."
)
_FEWEST_COSTS = 3
"""Fewer different costs are written as a table, since a chart would have hardly a point."""


@dataclass(frozen=True)
class Chart:
    """A chart with its caption.

    Attributes:
        id: The id of its HTML element.
        caption: What it shows.
        figure: The plotly figure.
    """

    id: str
    caption: str
    figure: go.Figure


@dataclass(frozen=True)
class Group:
    """Charts that belong together.

    Attributes:
        charts: The charts, in order.
        label: The heading of the group; empty for none.
        styles: The legend by name; empty if the charts use the page's list of methods.
    """

    charts: tuple[Chart, ...]
    label: str = ""
    styles: Mapping[str, Style] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of a section.

    Attributes:
        title: Its heading.
        text: What it shows.
        columns: The names of the columns.
        rows: The cells of each row; the first names it.
    """

    title: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        text: The text before the charts.
        groups: The groups of charts.
        table: A table in place of charts; None for none.
    """

    text: str
    groups: tuple[Group, ...]
    table: Table | None = None


def lines_text(report: ReportContents) -> str:
    """What lines and bands over epochs are; empty with one seed, which has a line alone."""
    if all(len(runs.folders) < 2 for runs in report.collected.methods):
        return ""
    return " Lines are means over seeds; bands span the lowest to the highest seed."


def shown_first(report: ReportContents) -> list[str]:
    """The methods that are shown before the reader selects others.

    If there are many, these are the most interesting ones. Outliers are left out, since the axes
    would have to span them.
    """
    means = {s.label: s.test_accuracy.mean for s in report.summaries if s.test_accuracy}
    inliers = [label for label, mean in means.items() if mean >= lowest_inlier([*means.values()])]
    if len(inliers) <= ALL_SHOWN:
        return inliers
    staged = [m.label for m in report.collected.methods if shallow_stages(m)][:1]
    wanted = {STUDENT, report.collected.task.baseline, *staged, *inliers[:BEST_SHOWN]}
    return [label for label in inliers if label in wanted]


def epochs(report: ReportContents, styles: Mapping[str, Style]) -> Section | Unavailable:
    """Test accuracy of every method over epochs."""
    curves = {
        runs.label: curve_of(runs, "test_accuracy") for runs in _in_order(report) if runs.folders
    }
    if not curves:
        return Unavailable("No run is finished yet.")
    accuracies = report.teacher_accuracies()
    level = (_TEACHER, sum(accuracies) / len(accuracies)) if accuracies else None
    lines = lines_text(report)
    text = f"Top-1 accuracy on the test split after every epoch that was evaluated.{lines}"
    first = shown_first(report)
    if len(first) < len(curves):
        text += f" At first {len(first)} of {len(curves)} methods are shown; select more below."
    figure = charts.over_epochs(curves, styles, "test accuracy, %", level)
    return Section(text, (Group((Chart("chart-epochs", "Test accuracy over epochs", figure),)),))


def cost(report: ReportContents, styles: Mapping[str, Style]) -> Section | Unavailable | None:
    """Test accuracy against parameters, multiply-adds and latency; None if it is not measured."""
    costs = report.analysis.costs
    if costs is None or isinstance(costs, Unavailable):
        return costs
    latency = (
        f"Latency was measured for this report on one CPU ({report.machine['processor']}) with one "
        "thread in float32: the median of repeated forward passes after a warm-up. It differs on "
        f"other machines.{costs.note}"
    )
    if len({*costs.students.values(), costs.teacher} - {None}) < _FEWEST_COSTS:
        shared = len({*costs.students.values()}) < len(costs.students)
        return Section(latency + _SHARED * shared, (), _cost_table(report, costs))
    teacher = " The star is the teacher." if costs.teacher else ""
    text = (
        f"Points are deployed students; bars span the lowest to the highest seed.{teacher} "
        f"{latency} Students of the same architecture were measured once."
    )
    all_styles = {**styles, _TEACHER: TEACHER}
    drawn = tuple(
        Chart(
            f"chart-{name}",
            f"Test accuracy against {title}",
            charts.against_cost(_points(report, costs, cost_of), all_styles, unit),
        )
        for name, title, unit, cost_of in _axes(costs)
    )
    return Section(text, (Group(drawn),))


def _cost_table(report: ReportContents, costs: ModelCosts) -> Table:
    """A row for each different cost, and how many times as much the teacher costs."""
    accuracies = {s.label: [*s.test_accuracy.values] for s in report.summaries if s.test_accuracy}
    labels: dict[Cost, list[str]] = {}
    for label, cost in costs.students.items():
        labels.setdefault(cost, []).append(label)
    rows = [
        _cost_row(", ".join(names), [one for name in names for one in accuracies[name]], cost)
        for cost, names in labels.items()
    ]
    if costs.teacher is not None:
        rows.append(_cost_row(_TEACHER, report.teacher_accuracies(), costs.teacher))
        if len(labels) == 1:
            (cost,) = labels
            ratios = (cost_of(costs.teacher) / cost_of(cost) for *_, cost_of in _axes(costs))
            times = (f"{rounded(ratio, 2)} times" for ratio in ratios)
            rows.append(("teacher compared with student", "", *times))
    heads = ("model", "test accuracy, %", "parameters", "multiply-adds for one image")
    latencies = ("latency of one image, ms", f"latency of {BATCH} images, ms")
    return Table("", "", (*heads, *latencies[: len(_axes(costs)) - 2]), tuple(rows))


def _cost_row(name: str, accuracies: Sequence[float], cost: Cost) -> tuple[str, ...]:
    sizes = f"{cost.parameters:,}", f"{cost.multiply_adds:,}"
    latencies = (rounded(one) for one in (cost.latency, cost.latency_batch) if one is not None)
    return (name, span(accuracies, ".2f") or "–", *sizes, *latencies)


_AXES: tuple[tuple[str, str, str, Callable[[Cost], float]], ...] = (
    ("parameters", "parameters", "parameters", lambda cost: cost.parameters),
    ("multiply-adds", "multiply-adds", "for one image", lambda cost: cost.multiply_adds),
    ("latency", "latency of one image", "ms", lambda cost: cost.latency),
    ("latency-batch", f"latency of {BATCH} images", "ms", lambda cost: cost.latency_batch or 0.0),
)


def _axes(costs: ModelCosts) -> tuple[tuple[str, str, str, Callable[[Cost], float]], ...]:
    """The costs that were measured: of segmentation, no latency of a batch is."""
    whole = all(cost.latency_batch is not None for cost in costs.students.values())
    return _AXES if whole else _AXES[:-1]


def _points(
    report: ReportContents, costs: ModelCosts, cost_of: Callable[[Cost], float]
) -> dict[str, tuple[float, list[float]]]:
    """The cost and the test accuracies of each model."""
    points = {
        s.label: (cost_of(costs.students[s.label]), list(s.test_accuracy.values))
        for s in report.summaries
        if s.test_accuracy and s.label in costs.students
    }
    accuracies = report.teacher_accuracies()
    if costs.teacher and accuracies:
        points[_TEACHER] = (cost_of(costs.teacher), accuracies)
    return points


def stages(report: ReportContents, styles: Mapping[str, Style]) -> Section | Unavailable:
    """Weight, losses and test accuracy of every shallow stage over epochs."""
    staged = [runs for runs in report.collected.methods if shallow_stages(runs)]
    found = len(staged)
    if found > ALL_SHOWN:  # each has four charts
        staged = [runs for runs in _in_order(report) if runs in staged][:ALL_SHOWN]
    if not staged:
        return Unavailable("No run supervised shallow stages, as the method dskd does.")
    text = (
        "Deep supervision during training: the loss weight of each shallow stage, its losses "
        "before weighting, and the test accuracy of its auxiliary branch, which is not "
        f"deployed.{lines_text(report)}"
    )
    if found > ALL_SHOWN:
        text += f" The {ALL_SHOWN} most accurate of {found} methods are shown."
    groups = tuple(_stage_group(number, runs, styles) for number, runs in enumerate(staged))
    return Section(text, groups)


_STAGE_CHARTS = (
    ("weight", "Weight of the stage", "weight"),
    ("prediction", "Loss on the predictions of the branch", "loss"),
    ("feature", "Loss on the feature maps of the stage", "loss"),
    ("test_accuracy", "Test accuracy of branch and student", "test accuracy, %"),
)


def _stage_group(number: int, runs: MethodRuns, styles: Mapping[str, Style]) -> Group:
    names = {f"{stage[:5]} {stage[5:]}": stage for stage in shallow_stages(runs)}
    own: dict[str, Style] = {
        name: charts.stage_style(depth) for depth, name in enumerate(names)
    } | {_STUDENT: styles[runs.label]}
    drawn = []
    for key, caption, unit in _STAGE_CHARTS:
        curves = {name: curve_of(runs, f"{stage}/{key}") for name, stage in names.items()}
        if key == "test_accuracy":
            curves[_STUDENT] = curve_of(runs, key)
        curves = {name: curve for name, curve in curves.items() if curve}
        if curves:
            figure = charts.over_epochs(curves, own, unit)
            drawn.append(Chart(f"chart-stages-{number}-{key}", caption, figure))
    return Group(tuple(drawn), runs.label, own)


def layers(report: ReportContents) -> Section | Unavailable | None:
    """Similarity of the layers of student and teacher; None if it is not measured."""
    found = report.analysis.similarities
    if found is None or isinstance(found, Unavailable):
        return found
    text = (
        "Linear CKA (Kornblith et al., 2019) of every layer of the student with every layer of its "
        f"teacher, on {found[0].images} test images: 1 if two layers are equal up to rotation and "
        "scale, 0 if they have nothing in common. One seed each."
    )
    values = [value for one in found for row in one.values for value in row if value is not None]
    lowest = min(math.floor(10 * min(values, default=0.0)) / 10, 0.9)
    drawn = tuple(
        Chart(f"chart-layers-{number}", _layers_caption(one), charts.similarity_map(one, lowest))
        for number, one in enumerate(found)
    )
    return Section(text, (Group(drawn),))


def _layers_caption(found: LayerSimilarity) -> str:
    return f"{found.label}, seed {found.seed}: layers of student (y) and teacher (x)"


def _in_order(report: ReportContents) -> list[MethodRuns]:
    """The runs in the order of the table."""
    order = [summary.label for summary in report.summaries]
    return sorted(report.collected.methods, key=lambda runs: order.index(runs.label))


def curve_of(runs: MethodRuns, key: str) -> Curve:
    """A metric by seed and epoch, without the seeds that do not have it."""
    found = {
        seed: {
            epoch: value
            for epoch, value in enumerate(columns.get(key, ()), start=1)
            if value is not None
        }
        for seed, columns in runs.metrics.items()
    }
    return {seed: values for seed, values in found.items() if values}
