"""Draws the figures of the pages from their JSON. The same numbers give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dskd.compare.statistics import Interval, paired
from evidence.rows import OURS, renamed
from evidence.why_page import BASELINE, measured, stage_names, with_row_names

_COLORS = {"ce": "#7f7f7f", "kd": "#1f5fa8", OURS: "#c0392b"}
_OTHER = "#444444"


def means(facts: Mapping[str, Any]) -> bytes:
    """Draws a study: the accuracy of every seed, and the means with 95 % intervals.

    Args:
        facts: The results that ``evidence.study`` writes.

    Returns:
        An SVG file.
    """
    facts = renamed(facts)
    rows = {label: row for label, row in facts["rows"].items() if row["accuracies"]}
    labels = sorted(rows, key=lambda label: float(rows[label]["mean"]))
    figure = Figure(figsize=(7.5, 0.9 + 0.24 * len(labels)), layout="constrained")
    axes = figure.subplots()
    for place, label in enumerate(labels):
        row, color = rows[label], color_of(label)
        seeds = row["accuracies"]
        axes.plot(seeds, [place] * len(seeds), "|", color=color, alpha=0.5, markersize=9)
        axes.errorbar(
            row["mean"], place, xerr=row["half"], fmt="o", color=color, capsize=3, markersize=5
        )
    if facts["baseline"] in rows:
        axes.axvline(rows[facts["baseline"]]["mean"], color="0.8", zorder=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("test accuracy after the last epoch, %")
    return _svg(figure)


def costs(facts: Mapping[str, Any]) -> bytes:
    """Draws a study: accuracy against training time, and against extra parameters.

    The rows with the most seeds have their names; all others are small points.

    Args:
        facts: The results that ``evidence.study`` writes.

    Returns:
        An SVG file.
    """
    rows = {label: row for label, row in renamed(facts)["rows"].items() if row["accuracies"]}
    most = max(len(row["accuracies"]) for row in rows.values())
    panels = {
        "minutes of training for a seed": [row["seconds"] / 60 for row in rows.values()],
        "extra parameters in training, 1,000": [
            row["extra_parameters"] / 1000 for row in rows.values()
        ],
    }
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    for axes, (title, values) in zip(
        figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True
    ):
        for value, (label, row) in zip(values, rows.items(), strict=True):
            named = len(row["accuracies"]) == most
            axes.plot(
                value,
                row["mean"],
                "o",
                color=color_of(label),
                alpha=1 if named else 0.4,
                markersize=6 if named else 3,
            )
            if named:
                where = {"xytext": (5, 3), "textcoords": "offset points"}
                axes.annotate(label.partition(":")[0], (value, row["mean"]), fontsize=7, **where)
        axes.set_xlabel(title)
        axes.margins(x=0.15)
    figure.axes[0].set_ylabel("test accuracy, %")
    return _svg(figure)


def stages(facts: Mapping[str, Any]) -> bytes:
    """Draws the measurements of the stages, as differences to kd.

    Args:
        facts: The results that ``evidence.why`` writes.

    Returns:
        An SVG file.
    """
    found = measured(with_row_names(facts))
    panels = {
        "linear probe, points over kd": found.probe,
        "CKA with teacher's last, over kd": found.last,
        "gradient / last stage's, over kd": found.ratio,
    }
    figure = Figure(figsize=(7.5, 3.0), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        others = [label for label in values if label != BASELINE]
        for place, label in enumerate(others):
            gaps = [paired(*pair) for pair in zip(values[label], values[BASELINE], strict=True)]
            _points(axes, label, [gap.interval for gap in gaps], 0.12 * (place - 1))
        axes.axhline(0, color=_COLORS[BASELINE], linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(values[BASELINE])), stage_names(values[BASELINE]))
        axes.margins(x=0.2)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    return _svg(figure)


def color_of(label: str) -> str:
    """The color of a method. Its settings do not change it.

    Args:
        label: A label of `dskd compare`.

    Example:
        >>> color_of("dskd:beta=0") == color_of("dskd")
        True
    """
    return _COLORS.get(label.partition(":")[0], _OTHER)


def _points(axes: Axes, label: str, found: Sequence[Interval], shift: float) -> None:
    """Draws the mean over seeds at every stage, with 95 % intervals."""
    axes.errorbar(
        [stage + shift for stage in range(len(found))],
        [one.mean for one in found],
        yerr=[one.half or 0.0 for one in found],
        color=color_of(label),
        markerfacecolor="white" if ":" in label else None,
        label=label,
        capsize=3,
        fmt="o",
    )


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "dskd", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
