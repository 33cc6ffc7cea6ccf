"""How rows of result tables are named: as one types them today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OURS = "dskd"
PRESET = "paper-abstract"
"""DSKD's preset in the recipe of the first protocol."""
DEFAULT = {"feature_target": "matched", "beta": "10"}
"""The settings in which DSKD's defaults differ from it."""
LABEL_OF_DEFAULTS = ":".join([OURS, *(f"{key}={value}" for key, value in DEFAULT.items())])
"""DSKD's defaults in the JSON of a study of the first protocol."""


def follows_first_protocol(facts: Mapping[str, Any]) -> bool:
    """Whether the recipe of a study names the preset `PRESET`.

    Args:
        facts: The results of a study.
    """
    return facts["split"] is not None and facts.get("protocol", "protocol") == "protocol"


def row_name(label: str, preset: bool) -> str:
    """The name that `dskd compare` takes today for a row of a study.

    Args:
        label: The row's name in the JSON of the study.
        preset: Whether the study's recipe names the preset `PRESET`.

    Example:
        >>> row_name("dskd:alpha=0", preset=True)
        'dskd:preset=paper-abstract:alpha=0'
        >>> row_name("dskd:feature_target=matched:beta=10:alpha=0", preset=True)
        'dskd:alpha=0'
    """
    name, *settings = label.split(":")
    if name != OURS or not preset:
        return label
    changed = dict(setting.split("=", 1) for setting in settings)
    if changed.get("feature_target") != DEFAULT["feature_target"]:
        return ":".join([OURS, f"preset={PRESET}", *settings])
    changed = {"beta": "1"} | changed  # as in the preset
    return ":".join([OURS, *(f"{k}={v}" for k, v in changed.items() if DEFAULT.get(k) != v)])


def renamed(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The results of a study with the names of `row_name`.

    Args:
        facts: The results of a study.
    """
    if not follows_first_protocol(facts):
        return facts

    def name(label: str) -> str:
        return row_name(label, preset=True)

    first = facts["first"]
    if first is not None:
        over = {name(label): gap for label, gap in first["over"].items()}
        names = {"label": name(first["label"]), "second": name(first["second"])}
        first = {**first, **names, "over": over}
    return {
        **facts,
        "baseline": name(facts["baseline"]),
        "groups": {title: [*map(name, labels)] for title, labels in facts["groups"].items()},
        "rows": {name(label): row for label, row in facts["rows"].items()},
        "duplicates": {name(label): name(one) for label, one in facts["duplicates"].items()},
        "first": first,
    }
