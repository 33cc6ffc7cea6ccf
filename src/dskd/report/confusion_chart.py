"""The charts of a student's errors: the confusion matrix and the accuracy of each class."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from dskd.report.charts import SHADES, colour, in_cell, lay_out

_NUMBERED = 12
"""With more classes than this the cells have no numbers, which would not fit."""
_LONGEST = 18


def confusion_map(
    classes: Sequence[str], predicted: Sequence[str], matrix: Sequence[Sequence[int]]
) -> go.Figure:
    """A heat map of a confusion matrix, with the first class at the top.

    Args:
        classes: The names of the classes.
        predicted: The names of the predicted classes.
        matrix: Number of images by class (row) and predicted class (column).
    """
    shares = [[100 * n / sum(row) if n else None for n in row] for row in matrix]
    names, others = ([html.escape(name) for name in found] for found in (classes, predicted))
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            # Both names and the number, since the axes shorten names.
            text=[
                [f"{name}, predicted {other}: {n:,}" for other, n in zip(others, row, strict=True)]
                for name, row in zip(names, matrix, strict=True)
            ],
            zmin=0,
            zmax=100,
            colorscale=SHADES,
            hovertemplate="%{text} (%{z:.1f} %)<extra></extra>",
            colorbar={"thickness": 10, "outlinewidth": 0, "nticks": 5, "ticksuffix": " %"},
            xgap=1,
            ygap=1,
        )
    )
    if len(classes) <= _NUMBERED:
        written = [
            in_cell(x, y, f"{count:,}", count / sum(row))
            for y, row in enumerate(matrix)
            for x, count in enumerate(row)
            if count
        ]
        figure.update_layout(annotations=written)
    lay_out(figure, "predicted class", "class")
    small = {"size": 10} if len(classes) > _NUMBERED else None
    figure.update_xaxes(showgrid=False, tickangle=-60, tickfont=small, **_ticks(predicted))
    figure.update_yaxes(showgrid=False, autorange="reversed", tickfont=small, **_ticks(classes))
    return figure


def _ticks(names: Sequence[str]) -> dict[str, Any]:
    """Positions rather than names, since shortened names may be the same."""
    return {"tickvals": list(range(len(names))), "ticktext": [_short(name) for name in names]}


def _short(name: str) -> str:
    return html.escape(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1].rstrip()}…")


def class_accuracies(
    found: Sequence[tuple[str, float]],
    classes: str = "classes, least accurate first",
    unit: str = "accuracy, %",
) -> go.Figure:
    """A step line of the accuracy of each class.

    Args:
        found: Name and accuracy in percent of each class, lowest first.
        classes: Title of the horizontal axis.
        unit: Title of the vertical axis.
    """
    figure = go.Figure(
        go.Scatter(
            x=list(range(1, len(found) + 1)),
            y=[round(accuracy, 2) for _, accuracy in found],
            text=[html.escape(name) for name, _ in found],
            mode="lines",
            line={"color": colour("--blue"), "width": 2, "shape": "hvh"},
            hovertemplate="%{text}: %{y:.1f} %<extra></extra>",
        )
    )
    lay_out(figure, classes, unit)
    figure.update_xaxes(range=[1 - 0.02 * len(found), 1.02 * len(found)])
    figure.update_yaxes(range=[-3, 103])
    return figure
