"""What a study takes from those before it: the baselines, their trials, the best of the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from dskd import methods
from dskd.compare.reader import read_comparison
from dskd.compare.variants import weights_of
from dskd.errors import InputError

FIXED = ("ce", "kd", "dskd")
"""Beside the baselines in every table."""
RIVALS = 2
"""So many methods of the table."""
SEEDS = range(3)
"""By which it is chosen."""
LEADING = 3
"""So many trials of a method get all `SEEDS`; all have the first."""


def baselines(table: Path) -> list[str]:
    """The two methods with the highest mean in the table, beside those of `FIXED`.

    Raises:
        InputError: The table is not finished.
    """
    means = _means(table, methods.names(), "table")
    others = [label for label in means if label not in FIXED]
    return sorted(others, key=lambda label: means[label], reverse=True)[:RIVALS]


def leading(folder: Path, labels: Sequence[str]) -> list[str]:
    """Of each method that was tried, the three trials with the highest accuracy at the first seed.

    Args:
        folder: The comparison.
        labels: The trials in it.

    Raises:
        InputError: One of them is not finished.
    """
    return _highest(_means(folder, labels, "trials", SEEDS[:1]), LEADING)


def best(folder: Path, labels: Sequence[str]) -> list[str]:
    """Of each method that was tried, that of the `leading` trials with the highest mean.

    Takes and raises the same as `leading`.
    """
    return _highest(_means(folder, leading(folder, labels), "trials"), 1)


def _highest(means: Mapping[str, float], count: int) -> list[str]:
    """So many labels of each method, the highest first."""
    of_method: dict[str, list[str]] = {}
    for label in means:
        of_method.setdefault(label.partition(":")[0], []).append(label)
    return [
        label
        for labels in of_method.values()
        for label in sorted(labels, key=means.__getitem__, reverse=True)[:count]
    ]


def trials_of(name: str) -> list[str]:
    """The eight trials of KD or a baseline, see the protocol.

    Example:
        >>> trials_of("sp")[0], trials_of("sp")[-1]
        ('sp:kd=1:weight=750', 'sp:kd=0:weight=6000')
    """
    if name == "kd":
        others = [(t, kd) for t in (2, 4) for kd in (0.5, 1, 2, 4) if (t, kd) != (4, 1)]
        return ["kd", *(f"kd:kd={kd}:temperature={t}" for t, kd in others)]
    if name == "dkd":
        return [f"dkd:kd={kd}:beta={beta}" for kd in (1, 2) for beta in (2, 4, 8, 16)]
    if name == "dist":
        return [f"dist:kd={kd}:temperature={t}" for t in (1, 4) for kd in (0.5, 1, 2, 4)]
    if not methods.find(name).needs_teacher:
        return [_scaled(name, name, 2.0**power) for power in range(-3, 5)]
    return [_scaled(name, f"{name}:kd=1", factor) for factor in (0.25, 0.5, 1, 2, 4)] + [
        _scaled(name, f"{name}:kd=0", factor) for factor in (0.5, 1, 2)
    ]


def _scaled(name: str, label: str, factor: float) -> str:
    """The label, with a method's own terms weighed so many times as much as by default."""
    weights = weights_of(name, methods.resolve(name, {}))
    own = ["weight"] if "weight" in weights else [key for key in weights if key not in ("ce", "kd")]
    return ":".join([label, *(f"{key}={factor * weights[key]:g}" for key in own)])


def _means(
    folder: Path, wanted: Sequence[str], study: str, seeds: Sequence[int] = SEEDS
) -> dict[str, float]:
    """Mean accuracy after the last epoch, in the order wanted; a method that failed has none.

    Raises:
        InputError: A run is missing.
    """
    begun = folder.is_dir()
    there = {entry.label: entry for entry in read_comparison(folder).entries} if begun else {}
    found = {}
    for label in wanted:
        entry = there.get(label)
        if entry is None or not {*seeds} <= {*entry.results, *entry.failed}:
            raise InputError(f"{label} is not finished in {folder}; run the study {study}")
        if not {*seeds} & {*entry.failed}:
            found[label] = mean(entry.results[seed]["test_accuracy"] for seed in seeds)
    return found
