"""The methods. The file ``NAME.py`` with a class of that name, in any capitals, is the method NAME.

``simkd.py`` has the class ``SimKD``, so it is the method ``simkd``; ``base.py`` has no class
``Base``, so it is not a method. Names and summaries are read from the source, and a method is
imported when it is used: to list them does not import torch.
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


@functools.cache
def _classes() -> dict[str, ast.ClassDef]:
    """The class of each method, by the method's name."""
    return {
        path.stem: node
        for path in sorted(Path(__file__).parent.glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name.lower() == path.stem.replace("_", "")
    }


def names() -> list[str]:
    """The names of all methods.

    Example:
        >>> "dskd" in names()
        True
    """
    return list(_classes())


def summary(name: str) -> str:
    """The first line of a method's description: its idea and its objective.

    Example:
        >>> summary("ce")
        'Cross-entropy with the labels: ``ce * CE(z_s, y)``.'
    """
    return (ast.get_docstring(_classes()[name]) or "").partition("\n")[0]


def find(name: str) -> type[Method]:
    """The method called ``name``.

    Raises:
        InputError: There is none of this name; the nearest is suggested.
    """
    if name not in names():
        raise unknown("method", name, names())
    method: type[Method] = getattr(
        importlib.import_module(f"{__name__}.{name}"), _classes()[name].name
    )
    return method


def resolve(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a method: its defaults, then a preset if one is named, then ``settings``.

    Args:
        name: The method.
        settings: The user's settings; ``preset`` names one of the method's presets.

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
