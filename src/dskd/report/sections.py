"""The parts of the page that hold charts: each a text, its charts and their captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import plotly.graph_objects as go

from dskd.compare.summary import BASELINE, STUDENT
from dskd.report import charts
from dskd.report.analysis import Costs, Missing, shallow_stages
from dskd.report.cka import Similarity
from dskd.report.collect import MethodRuns
from dskd.report.contents import Report
from dskd.report.cost import BATCH, Cost
from dskd.report.styles import TEACHER, Look
from dskd.report.tables import lowest_usual

ALL_SHOWN, BEST_SHOWN = 8, 3
"""Methods up to which all are drawn at first; how many of the best otherwise."""
_TEACHER, _STUDENT = "teacher", "student"


@dataclass(frozen=True)
class Chart:
    """A chart and what is read below it.

    Attributes:
        id: Of its element.
        caption: What it shows.
        figure: As plotly has it.
    """

    id: str
    caption: str
    figure: go.Figure


@dataclass(frozen=True)
class Group:
    """Charts that belong together.

    Attributes:
        charts: In their order.
        label: What sets the group apart, where there are several.
        looks: The legend, by name; empty where the page's own list of methods is it.
    """

    charts: tuple[Chart, ...]
    label: str = ""
    looks: Mapping[str, Look] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        text: What is said first.
        groups: Of charts.
    """

    text: str
    groups: tuple[Group, ...]


def shown_first(report: Report) -> list[str]:
    """The methods that are drawn before the reader chooses.

    All, or of many those of most interest; one that went wrong would squeeze the others.
    """
    means = {s.label: s.last.mean for s in report.summaries if s.last}
    usual = [label for label, mean in means.items() if mean >= lowest_usual([*means.values()])]
    if len(usual) <= ALL_SHOWN:
        return usual
    staged = [m.label for m in report.gathered.methods if shallow_stages(m)][:1]
    wanted = {STUDENT, BASELINE, *staged, *usual[:BEST_SHOWN]}
    return [label for label in usual if label in wanted]


def epochs(report: Report, looks: Mapping[str, Look]) -> Section | Missing:
    """Accuracy of every method over epochs."""
    curves = {
        runs.label: _curve(runs, "test_accuracy") for runs in _in_order(report) if runs.folders
    }
    if not curves:
        return Missing("No run is finished yet.")
    accuracies = report.teacher_accuracies()
    level = (_TEACHER, sum(accuracies) / len(accuracies)) if accuracies else None
    text = (
        "Top-1 accuracy on the test split after every epoch. Lines: the mean over seeds; bands: "
        "from the lowest seed to the highest."
    )
    first = shown_first(report)
    if len(first) < len(curves):
        text += f" {len(first)} of {len(curves)} methods are drawn at first; tick the others."
    figure = charts.over_epochs(curves, looks, "accuracy, %", level)
    return Section(text, (Group((Chart("chart-epochs", "Test accuracy of each epoch", figure),)),))


def cost(report: Report, looks: Mapping[str, Look]) -> Section | Missing:
    """Accuracy against parameters, multiply-adds and latency."""
    costs = report.examined.costs
    if isinstance(costs, Missing):
        return costs
    teacher = "; the star is the teacher" if costs.teacher else ""
    text = (
        f"Points are deployed students, bars go from the lowest seed to the highest{teacher}. "
        "Latency was measured for this report on one machine, with its CPU: "
        f"{report.machine['processor']}, one thread, float32, the median of repeated passes after "
        "a warm-up. Another machine gives other times. Students of the same build are measured "
        "once."
    )
    known = {**looks, _TEACHER: TEACHER}
    drawn = tuple(
        Chart(
            f"chart-{name}",
            f"Accuracy against {title}",
            charts.against_cost(_points(report, costs, taken), known, unit),
        )
        for name, title, unit, taken in _AXES
    )
    return Section(text, (Group(drawn),))


_AXES: tuple[tuple[str, str, str, Callable[[Cost], float]], ...] = (
    ("parameters", "parameters", "parameters", lambda cost: cost.parameters),
    ("multiply-adds", "multiply-adds", "for one image", lambda cost: cost.multiply_adds),
    ("latency", "latency of one image", "ms", lambda cost: cost.latency),
    ("latency-batch", f"latency of {BATCH} images", "ms", lambda cost: cost.latency_batch),
)


def _points(
    report: Report, costs: Costs, taken: Callable[[Cost], float]
) -> dict[str, tuple[float, list[float]]]:
    """What each model takes, and its accuracies."""
    points = {
        s.label: (taken(costs.students[s.label]), list(s.last.values))
        for s in report.summaries
        if s.last and s.label in costs.students
    }
    accuracies = report.teacher_accuracies()
    if costs.teacher and accuracies:
        points[_TEACHER] = (taken(costs.teacher), accuracies)
    return points


def stages(report: Report, looks: Mapping[str, Look]) -> Section | Missing:
    """Weight, losses and accuracy of every shallow stage over epochs."""
    staged = [runs for runs in report.gathered.methods if shallow_stages(runs)]
    if not staged:
        return Missing("No run taught shallow stages, as the method dskd does.")
    text = (
        "The shallow stages of the student while it learns: the weight that each is given, its "
        "losses before that weight, and the test accuracy of its branch, which is not deployed. "
        "Lines: the mean over seeds; bands: from the lowest seed to the highest."
    )
    groups = tuple(_stage_group(number, runs, looks) for number, runs in enumerate(staged))
    return Section(text, groups)


_STAGE_CHARTS = (
    ("weight", "Weight of the stage", "weight"),
    ("prediction", "Loss of its predictions", "loss"),
    ("feature", "Loss of its feature maps", "loss"),
    ("test_accuracy", "Accuracy, branch and student", "accuracy, %"),
)


def _stage_group(number: int, runs: MethodRuns, looks: Mapping[str, Look]) -> Group:
    names = {f"stage {stage.removeprefix('stage')}": stage for stage in shallow_stages(runs)}
    own: dict[str, Look] = {name: charts.stage_look(depth) for depth, name in enumerate(names)} | {
        _STUDENT: looks[runs.label]
    }
    drawn = []
    for key, caption, unit in _STAGE_CHARTS:
        curves = {name: _curve(runs, f"{stage}/{key}") for name, stage in names.items()}
        if key == "test_accuracy":
            curves[_STUDENT] = _curve(runs, key)
        curves = {name: curve for name, curve in curves.items() if curve}
        if curves:
            figure = charts.over_epochs(curves, own, unit)
            drawn.append(Chart(f"chart-stages-{number}-{key}", caption, figure))
    return Group(tuple(drawn), runs.label, own)


def layers(report: Report) -> Section | Missing:
    """Which layers of the student resemble which of the teacher."""
    found = report.examined.similarities
    if isinstance(found, Missing):
        return found
    text = (
        f"Linear CKA (Kornblith et al., 2019) of every layer of the student with every layer of "
        f"its teacher, on {found[0].images} test images: 1 where the two say the same up to "
        "rotation and scale, 0 where they have nothing in common. One seed each."
    )
    values = [value for one in found for row in one.values for value in row if value is not None]
    lowest = min(math.floor(10 * min(values, default=0.0)) / 10, 0.9)
    drawn = tuple(
        Chart(f"chart-layers-{number}", _of_layers(one), charts.similarity_map(one, lowest))
        for number, one in enumerate(found)
    )
    return Section(text, (Group(drawn),))


def _of_layers(found: Similarity) -> str:
    return f"{found.label}, seed {found.seed}: the student upward, the teacher to the right"


def _in_order(report: Report) -> list[MethodRuns]:
    """The runs in the order of the table."""
    order = [summary.label for summary in report.summaries]
    return sorted(report.gathered.methods, key=lambda runs: order.index(runs.label))


def _curve(runs: MethodRuns, key: str) -> dict[int, list[float]]:
    """A metric of every epoch, by seed; without the seeds that do not tell it."""
    told = {seed: [row[key] for row in rows if key in row] for seed, rows in runs.rows().items()}
    return {seed: values for seed, values in told.items() if values}
