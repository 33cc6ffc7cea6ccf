"""List the settings in which two recipes differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

_IGNORED = (
    "out",
    "data.root",
    "data.unlabelled",
    "data.shards",
    "data.cache_dir",
    "data.workers",
    "data.loading",
    "teacher.checkpoint",
    "teacher.cache_dir",
)
"""Settings that say where files lie, or how they are read. Images and teachers are compared by
fingerprint instead, which differs between images in memory and streamed ones."""


class StorableRecipe(Protocol):
    """A recipe that is stored with its run; `dskd.config.base_recipe.BaseRecipe` is one."""

    def plain(self) -> dict[str, Any]:
        """All settings as plain values."""

    def differences(self, stored: Mapping[str, Any], *, more_epochs: bool = False) -> str:
        """Lists the settings in which a stored recipe differs; empty if there is none."""


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Lists the settings in which two recipes, or parts of recipes, differ.

    Settings that hold a path are ignored, because a folder may have been moved.

    Args:
        there: The recipe that was stored.
        here: The recipe that is compared with it.

    Returns:
        One line; empty if nothing differs.

    Example:
        >>> differences({"seed": 1, "train": {"lr": 0.1}}, {"seed": 0, "train": {"lr": 0.1}})
        'seed is 1 there, 0 here'
    """
    old, new = _flatten(there), _flatten(here)
    return "; ".join(
        f"{key} is {old.get(key)} there, {new.get(key)} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.removeprefix("recipe.") not in _IGNORED
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
