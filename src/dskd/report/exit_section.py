"""The section of a report on early exits: accuracy against cost, policies, shares of images."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go

from dskd.deploy.early_exits import ExitEvaluation, ExitResult
from dskd.models.early_exits import NEVER
from dskd.report.analysis import Unavailable
from dskd.report.charts import colour, lay_out, show_legend, stage_style
from dskd.report.exits import MeasuredExits, OtherStudent
from dskd.report.sections import Chart, Group, Section, Table
from dskd.report.styles import Style, styles_of
from dskd.runtime.number_text import rounded

_PLAIN = Style("--ink", "dot", "cross", "✚")
"""Of the student itself, without exits. No other style has its symbol."""
_Cost = Callable[[ExitResult | OtherStudent], float]


def section(
    measured: MeasuredExits | Unavailable, styles: Mapping[str, Style]
) -> Section | Unavailable:
    """The text and the charts.

    Args:
        measured: The exits.
        styles: By the label of the method.
    """
    if isinstance(measured, Unavailable):
        return measured
    found = measured.found
    text = (
        f"{measured.label}, seed {measured.seed}, kept the branches of its shallow stages. An "
        "image leaves at the first exit whose confidence is at least its threshold, and the later "
        f"layers do not run. The thresholds were chosen on {measured.val_images:,} validation "
        "images; a point of the lines is one choice of them. Accuracy, cost and shares are those "
        f"of the {found.images:,} test images. The latency of one image is the mean over them, "
        "from the time until each exit has predicted, on one thread of this CPU. The single point "
        "“no exits” is the same student without them."
    )
    if measured.others:
        text += (
            " The other points are students of other runs on the same images. Their accuracy is "
            "that on the same test images, and their latency was measured in turns with the exits."
        )
    costs: tuple[tuple[str, str, _Cost, float], ...] = (
        ("multiply-adds", "for one image", lambda one: one.multiply_adds, found.multiply_adds),
        ("latency", "ms", lambda one: one.latency, found.latency),
    )
    drawn = [
        Chart(
            f"chart-exits-{name}",
            f"Test accuracy against mean {name}",
            _curve(measured, cost_of, plain, unit, styles),
        )
        for name, unit, cost_of, plain in costs
    ]
    shares = Chart("chart-exits-shares", "Where the test images leave", _shares(found))
    return Section(text, (Group((*drawn, shares)),))


def _curve(
    measured: MeasuredExits,
    cost_of: _Cost,
    plain: float,
    unit: str,
    styles: Mapping[str, Style],
) -> go.Figure:
    """Accuracy against a cost: all policies with exits, the student without, and other students."""
    figure = go.Figure()
    found, style = measured.found, styles[measured.label]
    points = found.curve[1:]  # the first one has no exits
    figure.add_trace(
        go.Scatter(
            x=[cost_of(one) for one in points],
            y=[one.accuracy for one in points],
            name="early exits",
            mode="lines+markers",
            line={"color": colour(style.colour), "width": 2},
            marker={"symbol": style.symbol, "size": 5, "color": colour(style.colour)},
            hovertemplate="early exits<br>%{x:.4~s}, %{y:.2f} %<extra></extra>",
        )
    )
    figure.add_trace(_point("no exits", plain, found.accuracies[-1], _PLAIN))
    names = _names(measured.others)
    others = styles_of(dict.fromkeys([*styles, *names]))  # none is that of a method
    for name, one in zip(names, measured.others, strict=True):
        figure.add_trace(_point(name, cost_of(one), one.accuracy, others[name]))
    lay_out(figure, unit, "test accuracy, %")
    figure.update_xaxes(rangemode="tozero")
    show_legend(figure)
    return figure


def _point(name: str, cost: float, accuracy: float, style: Style) -> go.Scatter:
    name = html.escape(name)
    return go.Scatter(
        x=[cost],
        y=[accuracy],
        name=name,
        mode="markers",
        marker={"symbol": style.symbol, "size": 11, "color": colour(style.colour)},
        hovertemplate=f"{name}<br>%{{x:.4~s}}, %{{y:.2f}} %<extra></extra>",
    )


def _names(others: Sequence[OtherStudent]) -> list[str]:
    """Model and seed of each student, with its folder if another one has the same."""
    short = [f"{one.student}, seed {one.seed}" for one in others]
    count = Counter(short)
    return [
        name if count[name] == 1 else f"{name}, {one.run}"
        for name, one in zip(short, others, strict=True)
    ]


def _shares(found: ExitEvaluation) -> go.Figure:
    """Stacked bars: the share of the images that leave at each exit, for each accepted loss."""
    figure = go.Figure()
    losses = [_loss(row) for row in found.rows]
    for number, name in enumerate(found.names):
        last = number == len(found.names) - 1
        style = _PLAIN if last else stage_style(number)
        figure.add_trace(
            go.Bar(
                x=[row.shares[number] for row in found.rows],
                y=losses,
                name=html.escape(name),
                orientation="h",
                marker={"color": colour(style.colour, 1.0 if number < 3 else 0.6)},
                hovertemplate=f"{html.escape(name)}: %{{x:.1f}} % of the images<extra></extra>",
            )
        )
    lay_out(figure, "share of the test images, %", "largest loss, points")
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(range=[0, 100])
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    show_legend(figure)
    figure.update_layout(legend_traceorder="normal")
    return figure


def _loss(row: ExitResult) -> str:
    return "" if row.max_loss is None else f"{row.max_loss:g}"


def tables(measured: MeasuredExits | Unavailable | None) -> tuple[Table, ...]:
    """The tables of policies, of other students if there are any, and of exits.

    None without exits.
    """
    if measured is None or isinstance(measured, Unavailable):
        return ()
    others = [_others(measured)] if measured.others else []
    return (_policies(measured), *others, _exits(measured))


def _policies(measured: MeasuredExits) -> Table:
    """The student without exits, and the cheapest policy for each accepted loss."""
    found = measured.found
    *exits, _ = found.names
    return Table(
        "Policies",
        "Each row is the cheapest choice of thresholds that loses at most so many percentage "
        "points of accuracy on the validation images. An exit that is off does not run.",
        (
            "largest loss, points",
            "validation accuracy, %",
            "test accuracy, %",
            "multiply-adds, M",
            "of those without exits, %",
            "latency, ms",
            *(f"threshold of {name}" for name in exits),
            *(f"images that leave at {name}, %" for name in exits),
        ),
        (
            _policy("no exits", found.curve[0], found),
            *(_policy(_loss(row), row, found) for row in found.rows),
        ),
    )


def _policy(name: str, one: ExitResult, found: ExitEvaluation) -> tuple[str, ...]:
    return (
        name,
        f"{one.val_accuracy:.2f}",
        f"{one.accuracy:.2f}",
        f"{one.multiply_adds / 1e6:.3f}",
        f"{100 * one.multiply_adds / found.multiply_adds:.1f}",
        rounded(one.latency),
        *("off" if value >= NEVER else f"{value:.3f}" for value in one.thresholds),
        *(f"{share:.1f}" for share in one.shares[:-1]),
    )


def _others(measured: MeasuredExits) -> Table:
    """The students of other runs."""
    own = measured.found.multiply_adds
    rows = [
        (
            name,
            one.method,
            f"{one.accuracy:.2f}",
            f"{one.multiply_adds / 1e6:.3f}",
            f"{100 * one.multiply_adds / own:.1f}",
            rounded(one.latency),
            one.run,
        )
        for name, one in zip(_names(measured.others), measured.others, strict=True)
    ]
    return Table(
        "Other students",
        "The deployed students of other runs on the same images. Their multiply-adds are also a "
        "share of those of the student above without exits.",
        (
            "student",
            "method",
            "test accuracy, %",
            "multiply-adds, M",
            "of those without exits, %",
            "latency, ms",
            "run",
        ),
        tuple(rows),
    )


def _exits(measured: MeasuredExits) -> Table:
    """How each exit was calibrated, and its accuracy if it alone predicts."""
    found = measured.found
    rows = [
        (
            one.name,
            f"{one.temperature:.2f}",
            f"{one.error:.1f}",
            f"{one.calibrated_error:.1f}",
            f"{accuracy:.2f}",
            f"{one.multiply_adds / 1e6:.3f}",
        )
        for one, accuracy in zip(measured.exits, found.accuracies[:-1], strict=True)
    ]
    own = f"{found.accuracies[-1]:.2f}", f"{found.multiply_adds / 1e6:.3f}"
    return Table(
        "Exits",
        "The temperature of an exit was fitted on the validation images. The calibration error on "
        "these images says how far its confidence is from its accuracy. The test accuracy is that "
        "of this exit if it alone predicts for all images.",
        (
            "exit",
            "temperature",
            "calibration error, %",
            "with temperature, %",
            "test accuracy, %",
            "multiply-adds, M",
        ),
        (*rows, (found.names[-1], "", "", "", *own)),
    )
