"""The charts of a report, made by plotly; the page draws them and gives them its colours."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from dskd.report.cka import Similarity
from dskd.report.styles import TEACHER, Look

Curve = Mapping[int, Sequence[float]]
"""A value for every epoch, by seed."""

_MARKED = 30
"""Epochs up to which each has a marker."""
# None of a method's colours: a stage is no method.
_STAGES = (
    Look("--brown", "dash", "circle", "●"),
    Look("--teal", "dot", "square-open", "□"),
    Look("--indigo", "dashdot", "triangle-up", "▲"),
    Look("--brown", "longdash", "triangle-down-open", "▽"),
    Look("--teal", "longdashdot", "circle-open", "○"),
)
_SIMILARITY = [[0, "#f2f5f7"], [0.5, "#7fa3b8"], [1, "#0b3a57"]]


def colour(name: str, opacity: float = 1.0) -> str:
    """A colour of the page's style sheet, which the page fills in as light or dark.

    Example:
        >>> colour("--blue"), colour("--blue", 0.2)
        ('var(--blue)', 'var(--blue, 0.2)')
    """
    return f"var({name})" if opacity == 1 else f"var({name}, {opacity:g})"


def stage_look(number: int) -> Look:
    """How a shallow stage is drawn, from 0."""
    return _STAGES[number % len(_STAGES)]


def over_epochs(
    curves: Mapping[str, Curve],
    looks: Mapping[str, Look],
    unit: str,
    level: tuple[str, float] | None = None,
) -> go.Figure:
    """A line a name: the mean over seeds, in a band from the least to the largest.

    Args:
        curves: By name.
        looks: How each is drawn.
        unit: Of the values, for the axis.
        level: A name and a value to draw across, such as the teacher's accuracy.
    """
    figure = go.Figure()
    for name, curve in curves.items():
        if len(curve) > 1:
            figure.add_trace(_band(name, curve, looks[name]))
        figure.add_trace(_line(name, curve, looks[name]))
    epochs = max((len(values) for curve in curves.values() for values in curve.values()), default=1)
    _lay_out(figure, "epoch", unit)
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


def _line(name: str, curve: Curve, look: Look) -> go.Scatter:
    columns = _columns(curve)
    mean = [sum(values) / len(values) for values in columns]
    marked = len(columns) <= _MARKED
    return go.Scatter(
        x=list(range(1, len(columns) + 1)),
        y=mean,
        name=html.escape(name),
        meta=name,
        mode="lines+markers" if marked else "lines",
        line={"color": colour(look.colour), "dash": look.dash, "width": 2},
        marker={"symbol": look.symbol, "size": 7, "color": colour(look.colour)},
        hovertemplate=f"{html.escape(name)}<br>epoch %{{x}}: %{{y:.4~g}}<extra></extra>",
    )


def _band(name: str, curve: Curve, look: Look) -> go.Scatter:
    columns = _columns(curve)
    epochs = list(range(1, len(columns) + 1))
    return go.Scatter(
        x=epochs + epochs[::-1],
        y=[max(values) for values in columns] + [min(values) for values in columns[::-1]],
        meta=name,
        fill="toself",
        fillcolor=colour(look.colour, 0.12),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )


def _columns(curve: Curve) -> list[tuple[float, ...]]:
    """The values of all seeds, epoch by epoch."""
    return list(zip(*curve.values(), strict=False))


def against_cost(
    points: Mapping[str, tuple[float, Sequence[float]]], looks: Mapping[str, Look], title: str
) -> go.Figure:
    """A point a model: its accuracy, from the least to the largest seed, against what it takes.

    Args:
        points: By name: what it takes, and its accuracies, one a seed.
        looks: How each is drawn.
        title: Of the horizontal axis, which is logarithmic.
    """
    figure = go.Figure()
    for name, (taken, values) in points.items():
        mean, look = sum(values) / len(values), looks[name]
        figure.add_trace(
            go.Scatter(
                x=[taken],
                y=[mean],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [max(values) - mean],
                    "arrayminus": [mean - min(values)],
                    "thickness": 1.5,
                    "width": 0,
                    "color": colour(look.colour, 0.5),
                },
                name=html.escape(name),
                meta=name,
                mode="markers",
                marker={"symbol": look.symbol, "size": 11, "color": colour(look.colour)},
                hovertemplate=f"{html.escape(name)}<br>%{{x:.4~s}}, %{{y:.2f}} %<extra></extra>",
            )
        )
    _lay_out(figure, title, "accuracy, %")
    figure.update_xaxes(type="log", **_decades([taken for taken, _ in points.values()]))
    return figure


def _decades(values: Sequence[float]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times powers of ten, and some room beside the points."""
    low, high = min(values) / 1.6, max(values) * 1.6
    ticks = [digit * 10.0**power for power in range(-4, 13) for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    return {
        "tickvals": shown,
        "ticktext": [short(tick) for tick in shown],
        "range": [math.log10(low), math.log10(high)],
    }


def short(number: float) -> str:
    """A number in a few letters.

    Example:
        >>> short(0.05), short(20), short(200_000), short(5e6), short(2e9)
        ('0.05', '20', '200 k', '5 M', '2 G')
    """
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:g} {letter}"
    return f"{number:g}"


def similarity_map(found: Similarity, lowest: float) -> go.Figure:
    """A heat map: the student's layers upward, the teacher's to the right.

    Args:
        found: The similarities.
        lowest: Where the colours begin, below 1; they end at 1.
    """
    teacher, student = ([html.escape(n) for n in names] for names in (found.teacher, found.student))
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in found.values],
            x=teacher,
            y=student,
            zmin=lowest,
            zmax=1,
            colorscale=_SIMILARITY,
            hovertemplate="student's %{y}, teacher's %{x}: %{z:.3f}<extra></extra>",
            colorbar={"thickness": 10, "outlinewidth": 0, "nticks": 5},
            xgap=2,
            ygap=2,
        )
    )
    for name, row in zip(student, found.values, strict=True):
        for other, value in zip(teacher, row, strict=True):
            if value is not None:
                shade = (value - lowest) / (1 - lowest)
                _write_in_cell(figure, other, name, value, min(1.0, max(0.0, shade)))
    _lay_out(figure, "teacher", "student")
    figure.update_xaxes(showgrid=False, type="category")
    figure.update_yaxes(showgrid=False, type="category")
    return figure


def _write_in_cell(figure: go.Figure, x: str, y: str, value: float, shade: float) -> None:
    """The number in its cell: white on dark, black on light."""
    [(red, green, blue)] = sample_colorscale(_SIMILARITY, [shade], colortype="tuple")
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    font = {"size": 12, "color": "#ffffff" if dark else "#000000"}
    figure.add_annotation(x=x, y=y, text=f"{value:.2f}", showarrow=False, font=font)


def _lay_out(figure: go.Figure, x: str, y: str) -> None:
    """What all charts share: no frame, faint grid, the page's letters and colours."""
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
