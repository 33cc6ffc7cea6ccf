"""Chooses from finished studies: the baselines, their configurations, and the best of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from dskd import methods
from dskd.compare.reader import is_lost, read_comparison
from dskd.compare.variants import folder_of, weights_of
from dskd.errors import InputError
from dskd.storage.run_files import LOST

TABLE = (
    *("at", "byot", "cc", "ce", "crd", "dist", "dkd", "dskd", "dsn", "fitnet", "kd", "nst", "pkt"),
    *("reviewkd", "rkd", "semckd", "simkd", "sp", "srrl", "sskd", "vid"),
)
"""All methods when the protocol was written. Methods that were added later are not in its table."""
FIXED = ("ce", "kd", "dskd")
"""Methods of every table. They are never chosen as baselines."""
BASELINES = 2
"""Number of baselines."""
SEEDS = range(3)
"""Seeds that choices are made by."""
LEADING = 3
"""Configurations of each method that run with all `SEEDS`. All others run with the first one."""


def baselines(table: Path) -> list[str]:
    """The methods with the highest mean in the table, without those of `FIXED`.

    Args:
        table: The folder of the study ``table``.

    Raises:
        InputError: The table is not finished.
    """
    return strongest(mean_accuracies(table, TABLE, "table"), BASELINES)


def strongest(means: Mapping[str, float], count: int) -> list[str]:
    """The methods with the highest mean, without those of `FIXED`.

    Args:
        means: The mean accuracy of each method.
        count: How many.
    """
    others = [label for label in means if label not in FIXED]
    return sorted(others, key=means.__getitem__, reverse=True)[:count]


def leading(folder: Path, labels: Sequence[str]) -> list[str]:
    """The three configurations of each method with the highest accuracy at the first seed.

    Args:
        folder: The folder of the comparison.
        labels: Its configurations.

    Raises:
        InputError: A configuration is not finished.
    """
    return highest(mean_accuracies(folder, labels, "configurations", SEEDS[:1]), LEADING)


def best(folder: Path, labels: Sequence[str]) -> list[str]:
    """The configuration of each method with the highest mean, among the `leading` ones.

    Args:
        folder: The folder of the comparison.
        labels: Its configurations.

    Raises:
        InputError: A configuration is not finished.
    """
    return highest(mean_accuracies(folder, leading(folder, labels), "configurations"), 1)


def highest(means: Mapping[str, float], count: int) -> list[str]:
    """The best labels of each method, the highest mean first.

    Args:
        means: The mean accuracy of each label.
        count: Most labels of a method.
    """
    of_method: dict[str, list[str]] = {}
    for label in means:
        of_method.setdefault(label.partition(":")[0], []).append(label)
    return [
        label
        for labels in of_method.values()
        for label in sorted(labels, key=means.__getitem__, reverse=True)[:count]
    ]


def configurations_of(name: str) -> list[str]:
    """The eight configurations of KD or of a baseline, as the protocol lists them.

    Args:
        name: The method.

    Example:
        >>> configurations_of("sp")[0], configurations_of("sp")[-1]
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
    """The label, with the method's own loss weights multiplied by a factor."""
    scaled = (f"{key}={factor * weight:g}" for key, weight in own_weights(name).items())
    return ":".join([label, *scaled])


def own_weights(name: str) -> dict[str, float]:
    """The weights of a method's own losses. A ``weight`` of all of them stands alone.

    ``ratio`` of wkd is a weight within a loss, so it does not count.

    Args:
        name: The method.
    """
    weights = weights_of(name, methods.resolve(name, {}))
    own = {key: value for key, value in weights.items() if key not in ("ce", "kd", "ratio")}
    return {"weight": own["weight"]} if "weight" in own else own


def mean_accuracies(
    folder: Path, labels: Sequence[str], study: str, seeds: Sequence[int] = SEEDS
) -> dict[str, float]:
    """Mean test accuracy after the last epoch, in the order of the labels.

    A label with a failed run has no mean and is left out.

    Args:
        folder: The folder of the comparison.
        labels: Its labels.
        study: The study that computes them, for the message.
        seeds: The seeds of the mean.

    Raises:
        InputError: A run is missing, or its process was lost.
    """
    found = {}
    if folder.is_dir():
        found = {entry.label: entry for entry in read_comparison(folder).variants}
    means = {}
    for label in labels:
        for run in (folder / folder_of(label) / f"seed{seed}" for seed in seeds):
            if is_lost(run):
                raise InputError(f"{run} was lost (see {LOST}); run the study {study} again")
        entry = found.get(label)
        if entry is None or not {*seeds} <= {*entry.results, *entry.failed}:
            raise InputError(f"{label} is not finished in {folder}; run the study {study}")
        if not {*seeds} & {*entry.failed}:
            means[label] = mean(entry.results[seed]["test_accuracy"] for seed in seeds)
    return means
