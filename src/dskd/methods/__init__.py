"""The methods: one file each, and the file's name is the method's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from dskd.errors import unknown
from dskd.methods.base import Method
from dskd.settings import signature_settings, validate


def names() -> list[str]:
    """Every method's name.

    Example:
        >>> "dskd" in names()
        True
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def find(name: str) -> type[Method]:
    """The method called ``name``.

    Raises:
        InputError: There is none of this name; the nearest is named.
    """
    if name not in names():
        raise unknown("method", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    (method,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    )
    return method


def resolve(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a method: its defaults, a preset where one is named, and what was given.

    Args:
        name: The method.
        settings: What the user set; ``preset`` among them names a set of the method's own.

    Raises:
        InputError: A setting or preset does not exist, or a value is out of range.

    Example:
        >>> resolve("kd", {"temperature": 2})["temperature"]
        2.0
    """
    method = find(name)
    given = dict(settings)
    preset = given.pop("preset", None)
    if preset is not None and preset not in list(method.presets):
        raise unknown(f"preset of {name}", preset, method.presets)
    known = signature_settings(method.__init__)
    values = (method.presets[preset] if preset is not None else {}) | given
    return validate(known, values, "method.").model_dump()


__all__ = ["Method", "find", "names", "resolve"]
