"""The figures of the pages, drawn from their JSON: the same numbers give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dskd.compare.statistics import interval
from evidence.page import OURS

_COLORS = {"ce": "#7f7f7f", "kd": "#1f5fa8", OURS: "#c0392b"}
_OTHER = "#444444"


def means(facts: Mapping[str, Any]) -> bytes:
    """A study as SVG: every seed's accuracy, and the means with their 95 % intervals.

    Args:
        facts: As ``evidence.study`` writes them.
    """
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


def stages(facts: Mapping[str, Any]) -> bytes:
    """What the stages of students know and are like, as SVG.

    Args:
        facts: As ``evidence.why`` writes them.
    """
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label in facts["probe"]:
        seeds = [str(seed) for seed in facts["seeds"]]
        known = [facts["probe"][label][seed] for seed in seeds]
        alike = [facts["similarity"][label][seed]["last"] for seed in seeds]
        _lines(left, label, known)
        _lines(right, label, alike)
    for axes, title in ((left, "linear probe, test accuracy, %"), (right, "CKA, teacher's last")):
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(facts["stages"])), facts["stages"])
        axes.margins(x=0.12)
    left.legend(fontsize=8)
    return _svg(figure)


def color_of(label: str) -> str:
    """A method's color, whatever its settings.

    Example:
        >>> color_of("dskd:beta=0") == color_of("dskd")
        True
    """
    return _COLORS.get(label.partition(":")[0], _OTHER)


def _lines(axes: Axes, label: str, seeds: Sequence[Sequence[float]]) -> None:
    """A method's mean over seeds at every stage, with 95 % intervals."""
    found = [interval(values) for values in zip(*seeds, strict=True)]
    middle = [one.mean for one in found]
    half = [one.half or 0.0 for one in found]
    axes.errorbar(
        range(len(found)),
        middle,
        yerr=half,
        color=color_of(label),
        label=label,
        capsize=3,
        fmt="o--" if ":" in label else "o-",
    )


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "dskd", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
