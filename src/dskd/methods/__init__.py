"""Distillation methods, one per file. The file's name is the method's name.

Only `find` and `resolve` import torch: names and summaries are read off the files.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dskd.errors import unknown
from dskd.settings import signature_settings, validate

if TYPE_CHECKING:
    from dskd.methods.base import Method


def names() -> list[str]:
    """Lists all methods.

    Example:
        >>> "dskd" in names()
        True
    """
    return list(_summaries())


def summary(name: str) -> str:
    """The first line of a method's docstring.

    Example:
        >>> summary("ce")
        'Cross-entropy with the labels: ``ce * CE(z_s, y)``.'
    """
    return _summaries()[name]


@functools.cache
def _summaries() -> dict[str, str]:
    """The summary of each method, by name.

    A file is a method's if it defines a class of the file's name, in any case and without
    underscores. The other files hold what methods share.
    """
    found = {}
    for path in sorted(Path(__path__[0]).glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.lower() == path.stem.replace("_", ""):
                found[path.stem] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found


def find(name: str) -> type[Method]:
    """Imports a method.

    Raises:
        InputError: No method has this name.
    """
    from dskd.methods.base import Method

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
    """Fills in all settings of a method.

    A value comes from ``settings``, else from the preset, else from the method's defaults.

    Args:
        name: The method.
        settings: What the user set. ``preset`` names one of the method's presets.

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


__all__ = ["find", "names", "resolve", "summary"]
