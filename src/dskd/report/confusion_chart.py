"""The chart of a confusion matrix."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from dskd.report.charts import SHADES, lay_out, write_in_cell

_NUMBERED = 12
"""With more classes than this the cells have no numbers, which would not fit."""
_LONGEST = 18


def confusion_map(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> go.Figure:
    """A heat map of a confusion matrix, with the first class at the top.

    Args:
        classes: The names of the classes.
        matrix: Number of images by class (row) and predicted class (column).
    """
    shares = [[100 * n / sum(row) if n else None for n in row] for row in matrix]
    names = [html.escape(name) for name in classes]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            # Both names and the number, since the axes shorten names.
            text=[
                [f"{name}, predicted {other}: {n:,}" for other, n in zip(names, row, strict=True)]
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
        for y, row in enumerate(matrix):
            for x, count in enumerate(row):
                if count:
                    write_in_cell(figure, x, y, f"{count:,}", count / sum(row))
    lay_out(figure, "predicted class", "class")
    # Positions rather than names: shortened names may be the same.
    ticks = {"tickvals": list(range(len(classes))), "ticktext": [_short(one) for one in classes]}
    small = {"size": 10} if len(classes) > _NUMBERED else None
    figure.update_xaxes(showgrid=False, tickangle=-60, tickfont=small, **ticks)
    figure.update_yaxes(showgrid=False, autorange="reversed", tickfont=small, **ticks)
    return figure


def _short(name: str) -> str:
    return html.escape(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…")
