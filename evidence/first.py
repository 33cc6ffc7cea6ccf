"""The configurations and choices of the study "DSKD first" (docs/results/protocol-first.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dskd import methods
from dskd.errors import InputError
from dskd.methods.base import LogitMethod
from dskd.settings import signature_settings
from dskd.storage.yaml_file import read_yaml_file
from evidence.choose import FIXED, highest, mean_accuracies, own_weights, strongest

SPACES = read_yaml_file(Path(__file__).parent / "spaces.yaml", "spaces")
"""For each method, the settings that vary and their values; ``baseline`` stands for all others."""
METHODS = (
    *("at", "byot", "catkd", "cc", "ce", "crd", "dist", "dkd", "dskd", "dsn", "fitnet", "kd"),
    *("lskd", "mlkd", "nkd", "norm", "nst", "ofa", "pkt", "reviewkd", "rkd", "sdd", "semckd"),
    *("simkd", "sp", "srrl", "vid", "vkd", "wkd", "wttm"),
)
"""The methods of the study: all that were there when it began, without `sskd`, which reads rotated
images. Their teacher outputs cannot be cached."""
BASELINES = 4
"""Number of baselines."""
CONFIGURATIONS = 24
"""Configurations of each searched method. The first one is its defaults."""
LEADING = 4
"""Configurations of each searched method that run with all `SEEDS` and the whole schedule."""
SEEDS = range(3)
"""Seeds that the search chooses by."""
_PARTS = (
    {"beta": "0", "deep_stage": "none"},
    {"alpha": "0"},
    {"allocation": "uniform"},
)
"""What takes a part of DSKD away: the maps, that of the deep stage too; the predictions; the
weights by losses."""
_DRAWS = 10_000
"""Draws after which a space counts as too small."""
DRAWS_FROM = 20261128
"""Seed of the draws, together with the name of the method."""


def baselines(out: Path) -> list[str]:
    """The methods with the highest accuracy at seed 0, without those that are never baselines.

    Args:
        out: The folder of all studies.

    Raises:
        InputError: The study ``first-baselines`` is not finished.
    """
    folder = out / "first-leading"
    means = mean_accuracies(folder, METHODS, "first-baselines", SEEDS[:1])
    return strongest(means, BASELINES)


def searched(out: Path) -> list[str]:
    """The configurations of KD, DSKD and the baselines.

    Args:
        out: The folder of all studies.
    """
    return [label for name in ("kd", "dskd", *baselines(out)) for label in configurations(name)]


def leading(out: Path) -> list[str]:
    """The four configurations of each searched method with the highest accuracy at seed 0.

    Args:
        out: The folder of all studies.
    """
    folder = out / "first-search"
    means = mean_accuracies(folder, searched(out), "first-search", SEEDS[:1])
    return highest(means, LEADING)


def chosen(out: Path) -> list[str]:
    """The configuration of each searched method with the highest mean, among the `leading` ones.

    Args:
        out: The folder of all studies.
    """
    means = mean_accuracies(out / "first-leading", leading(out), "first-leading", SEEDS)
    return highest(means, 1)


def chosen_dskd(out: Path) -> str:
    """DSKD as it was chosen.

    Args:
        out: The folder of all studies.

    Raises:
        InputError: All of its leading configurations have a failed run.
    """
    found = [one for one in chosen(out) if one.partition(":")[0] == "dskd"]
    if not found:
        raise InputError(
            f"no leading configuration of dskd has a result for all seeds {[*SEEDS]} in "
            f"{out / 'first-leading'}; the protocol says nothing of this case"
        )
    return found[0]


def parts(out: Path) -> list[str]:
    """DSKD as it was chosen; without maps, without predictions, and with uniform weights.

    Args:
        out: The folder of all studies.
    """
    label = chosen_dskd(out)
    return [label, *(_changed(label, part) for part in _PARTS)]


def _changed(label: str, settings: Mapping[str, str]) -> str:
    """The label with other settings. One that it does not name keeps its default if that is it."""
    name, *named = label.split(":")
    defaults = methods.resolve(name, {})
    kept = [one for one in named if one.partition("=")[0] not in settings]
    other = [f"{key}={value}" for key, value in settings.items() if str(defaults[key]) != value]
    return ":".join([name, *kept, *other])


def configurations(name: str) -> list[str]:
    """Draws the configurations of a method: its defaults, then draws from its space.

    The draws depend on `DRAWS_FROM` and the name alone. A configuration that was drawn before is
    drawn again.

    Args:
        name: The method.

    Returns:
        `CONFIGURATIONS` labels, all different.

    Raises:
        InputError: A space has too few configurations, or `space_of` refuses it.

    Example:
        >>> drawn = configurations("kd")
        >>> drawn[0], len(set(drawn))
        ('kd', 24)
    """
    space = space_of(name)
    random = np.random.default_rng([DRAWS_FROM, *name.encode()])
    found = {name: None}
    for _ in range(_DRAWS):
        found[_label(name, {key: _draw(values, random) for key, values in space.items()})] = None
        if len(found) == CONFIGURATIONS:
            return [*found]
    raise InputError(f"the space of {name} has only {len(found)} configurations")


def space_of(name: str) -> dict[str, Any]:
    """The settings of a method that vary, each with its values.

    Args:
        name: The method.

    Raises:
        InputError: The space of KD or DSKD is not stated, or a method's own entry names one of the
            weights that the shared factor changes.
    """
    if name in FIXED and name not in SPACES:
        raise InputError(f"spaces.yaml has no space of {name}; state it there")
    if name in FIXED:
        return dict(SPACES[name])
    known = signature_settings(methods.find(name).__init__).model_fields
    shared = SPACES["kd" if weighted_by_kd(name) else "baseline"]
    found = {key: values for key, values in shared.items() if key == "weights" or key in known}
    own = SPACES.get(name, {})
    if twice := sorted({*own} & {*own_weights(name)}) if "weights" in found else []:
        raise InputError(f"spaces.yaml: {name}.{twice[0]} would be drawn, and scaled by weights")
    return {**found, **own}


def weighted_by_kd(name: str) -> bool:
    """Whether ``kd`` is the weight of the method's own loss, not of an added loss of KD.

    It is so for the methods that compare the student's own logits alone, and for wkd. Their further
    weights are weights within that loss. (`ofa` also compares logits of branches, which have a
    weight of their own.)

    Args:
        name: The method.

    Example:
        >>> weighted_by_kd("dist"), weighted_by_kd("wkd"), weighted_by_kd("reviewkd")
        (True, True, False)
    """
    return name == "wkd" or issubclass(methods.find(name), LogitMethod)


def _draw(values: Any, random: np.random.Generator) -> Any:
    """One value: of a list, or log-uniform, rounded to three digits."""
    if isinstance(values, Mapping):
        low, high = np.log([values["low"], values["high"]])
        return float(f"{np.exp(random.uniform(low, high)):.3g}")
    return values[int(random.integers(len(values)))]


def _label(name: str, drawn: Mapping[str, Any]) -> str:
    """The label of a configuration; settings that have their defaults are left out."""
    defaults = methods.resolve(name, {"kd": 1.0} if "kd" in drawn else {})
    changes = {key: value for key, value in drawn.items() if key != "weights"}
    if "weights" in drawn:
        own = own_weights(name)
        changes |= {key: float(f"{drawn['weights'] * value:.3g}") for key, value in own.items()}
    different = {key: value for key, value in changes.items() if value != defaults[key]}
    return ":".join([name, *(f"{key}={_text(value)}" for key, value in different.items())])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)
