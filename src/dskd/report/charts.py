"""The charts of a report as plotly figures. The page draws them in its own colours."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from dskd.report.cka import LayerSimilarity
from dskd.report.styles import TEACHER, Style

Curve = Mapping[int, Mapping[int, float]]
"""The values of a metric by seed and epoch. An epoch may have none."""

MOST_POINTS = 200
"""A longer curve is drawn with this many epochs, so that the page stays small."""
_MARKED = 30
"""A line with more epochs than this has no markers."""
# No colour of a method, since a stage is not a method.
_STAGE_STYLES = (
    Style("--brown", "dash", "circle", "●"),
    Style("--teal", "dot", "square-open", "□"),
    Style("--indigo", "dashdot", "triangle-up", "▲"),
    Style("--brown", "longdash", "triangle-down-open", "▽"),
    Style("--teal", "longdashdot", "circle-open", "○"),
)
SHADES = [[0, "#f2f5f7"], [0.5, "#7fa3b8"], [1, "#0b3a57"]]


def colour(name: str, opacity: float = 1.0) -> str:
    """A reference to a colour of the style sheet, which the page resolves to light or dark.

    Example:
        >>> colour("--blue"), colour("--blue", 0.2)
        ('var(--blue)', 'var(--blue, 0.2)')
    """
    return f"var({name})" if opacity == 1 else f"var({name}, {opacity:g})"


def stage_style(number: int) -> Style:
    """The style of a shallow stage, numbered from 0."""
    return _STAGE_STYLES[number % len(_STAGE_STYLES)]


def over_epochs(
    curves: Mapping[str, Curve],
    styles: Mapping[str, Style],
    unit: str,
    level: tuple[str, float] | None = None,
) -> go.Figure:
    """A line chart over epochs: the mean over seeds, in a band from the lowest to the highest seed.

    Args:
        curves: The curves by name.
        styles: The style of each curve.
        unit: The unit of the values, for the axis.
        level: Name and value of a horizontal line, such as the accuracy of the teacher.
    """
    figure = go.Figure()
    for name, curve in curves.items():
        if len(curve) > 1:
            figure.add_trace(_band(name, curve, styles[name]))
        figure.add_trace(_line(name, curve, styles[name]))
    epochs = max(
        (epoch for curve in curves.values() for epoch in chain(*curve.values())), default=1
    )
    lay_out(figure, "epoch", unit)
    figure.update_xaxes(
        range=[1 - 0.03 * epochs, 1.03 * epochs], tickformat="d", nticks=min(epochs, 8) + 1
    )
    if epochs <= 10:
        figure.update_xaxes(dtick=1)
    if level is not None:
        _draw_level(figure, *level)
    return figure


def _draw_level(figure: go.Figure, name: str, value: float) -> None:
    line = {"color": colour(TEACHER.colour), "dash": TEACHER.dash, "width": 1.2}
    text = f"{html.escape(name)} {value:.1f}"
    font = {"color": colour(TEACHER.colour), "size": 12}
    figure.add_hline(
        value, line=line, annotation={"text": text, "font": font}, annotation_position="top left"
    )


def _line(name: str, curve: Curve, style: Style) -> go.Scatter:
    columns = _columns(curve)
    mean = [_drawn(sum(values) / len(values)) for values in columns.values()]
    marked = len(columns) <= _MARKED
    return go.Scatter(
        x=list(columns),
        y=mean,
        name=html.escape(name),
        meta=name,
        mode="lines+markers" if marked else "lines",
        line={"color": colour(style.colour), "dash": style.dash, "width": 2},
        marker={"symbol": style.symbol, "size": 7, "color": colour(style.colour)},
        hovertemplate=f"{html.escape(name)}<br>epoch %{{x}}: %{{y:.4~g}}<extra></extra>",
    )


def _band(name: str, curve: Curve, style: Style) -> go.Scatter:
    columns = _columns(curve)
    epochs, rows = list(columns), list(columns.values())
    return go.Scatter(
        x=epochs + epochs[::-1],
        y=[_drawn(max(values)) for values in rows] + [_drawn(min(values)) for values in rows[::-1]],
        meta=name,
        fill="toself",
        fillcolor=colour(style.colour, 0.12),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )


def _columns(curve: Curve) -> dict[int, tuple[float, ...]]:
    """The values of all seeds by epoch: evenly spaced epochs of a long run, and the last one."""
    epochs = sorted(set.intersection(*map(set, curve.values()))) if curve else []
    if len(epochs) > MOST_POINTS:
        step = (len(epochs) - 1) / (MOST_POINTS - 1)
        epochs = [epochs[round(step * number)] for number in range(MOST_POINTS)]
    return {epoch: tuple(values[epoch] for values in curve.values()) for epoch in epochs}


def _drawn(value: float) -> float:
    """A value with the six digits that a chart can show, which take less room in the page."""
    return float(f"{value:.6g}")


def show_legend(figure: go.Figure) -> None:
    """Adds a legend of the lines above a chart whose curves are no methods."""
    figure.for_each_trace(lambda trace: trace.update(showlegend=trace.name is not None))
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11}}
    figure.update_layout(showlegend=True, legend=legend)


def against_cost(
    points: Mapping[str, tuple[float, Sequence[float]]], styles: Mapping[str, Style], title: str
) -> go.Figure:
    """A scatter plot of accuracy against cost, with bars from the lowest to the highest seed.

    Args:
        points: Cost and accuracies, one per seed, by name of the model.
        styles: The style of each model.
        title: Title of the horizontal axis, which is logarithmic.
    """
    figure = go.Figure()
    for name, (cost, values) in points.items():
        mean, style = sum(values) / len(values), styles[name]
        figure.add_trace(
            go.Scatter(
                x=[cost],
                y=[mean],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [max(values) - mean],
                    "arrayminus": [mean - min(values)],
                    "thickness": 1.5,
                    "width": 0,
                    "color": colour(style.colour, 0.5),
                },
                name=html.escape(name),
                meta=name,
                mode="markers",
                marker={"symbol": style.symbol, "size": 11, "color": colour(style.colour)},
                hovertemplate=f"{html.escape(name)}<br>%{{x:.4~s}}, %{{y:.2f}} %<extra></extra>",
            )
        )
    lay_out(figure, title, "test accuracy, %")
    figure.update_xaxes(type="log", **_decades([cost for cost, _ in points.values()]))
    return figure


def _decades(values: Sequence[float]) -> dict[str, Any]:
    """An axis with ticks at 1, 2 and 5 times powers of ten, and a margin around the points."""
    low, high = min(values) / 1.6, max(values) * 1.6
    ticks = [digit * 10.0**power for power in range(-4, 13) for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    return {
        "tickvals": shown,
        "ticktext": [short_number(tick) for tick in shown],
        "range": [math.log10(low), math.log10(high)],
    }


def short_number(number: float) -> str:
    """A number with a unit prefix.

    Example:
        >>> [short_number(n) for n in (0.05, 20, 200_000, 5e6, 2e9)]
        ['0.05', '20', '200 k', '5 M', '2 G']
    """
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:g} {letter}"
    return f"{number:g}"


def similarity_map(found: LayerSimilarity, lowest: float) -> go.Figure:
    """A heat map of layer similarities: the teacher on the x axis, the student on the y axis.

    Args:
        found: The similarities.
        lowest: The value of the first colour, below 1. The last colour is that of 1.
    """
    teacher, student = ([html.escape(n) for n in names] for names in (found.teacher, found.student))
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in found.values],
            x=teacher,
            y=student,
            zmin=lowest,
            zmax=1,
            colorscale=SHADES,
            hovertemplate="student %{y}, teacher %{x}: %{z:.3f}<extra></extra>",
            colorbar={"thickness": 10, "outlinewidth": 0, "nticks": 5},
            xgap=2,
            ygap=2,
        )
    )
    written = []
    for name, row in zip(student, found.values, strict=True):
        for other, value in zip(teacher, row, strict=True):
            if value is not None:
                shade = min(1.0, max(0.0, (value - lowest) / (1 - lowest)))
                written.append(in_cell(other, name, f"{value:.2f}", shade))
    figure.update_layout(annotations=written)
    lay_out(figure, "teacher", "student")
    figure.update_xaxes(showgrid=False, type="category")
    figure.update_yaxes(showgrid=False, type="category")
    return figure


def in_cell(x: str | int, y: str | int, text: str, shade: float) -> dict[str, Any]:
    """The annotation that writes a number in its cell: white on dark, black on light."""
    [(red, green, blue)] = sample_colorscale(SHADES, [shade], colortype="tuple")
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    font = {"size": 12, "color": "#ffffff" if dark else "#000000"}
    return {"x": x, "y": y, "text": text, "showarrow": False, "font": font}


def lay_out(figure: go.Figure, x: str, y: str) -> None:
    """Applies the layout of all charts: no frame, a faint grid, font and colours of the page."""
    figure.update_layout(
        template="none",
        font={"family": "system-ui, sans-serif", "size": 13, "color": colour("--ink")},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 56, "r": 16, "t": 16, "b": 48},
        showlegend=False,
        dragmode=False,
        hoverlabel={
            "bgcolor": colour("--paper"),
            "bordercolor": colour("--rule"),
            "font": {"color": colour("--ink")},
        },
    )
    axis = {
        "gridcolor": colour("--grid"),
        "linecolor": colour("--rule"),
        "tickcolor": colour("--rule"),
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
    }
    figure.update_xaxes(title={"text": x, "standoff": 8}, showline=True, **axis)
    figure.update_yaxes(title={"text": y, "standoff": 8}, **axis)
