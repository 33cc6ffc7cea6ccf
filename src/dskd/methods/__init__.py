"""The methods. The file ``NAME.py`` with a class of that name, in any capitals, is the method NAME.

``simkd.py`` has the class ``SimKD``, so it is the method ``simkd``; ``base.py`` has no class
``Base``, so it is not a method. Names and summaries are read from the source, and a method is
imported when it is used: to list them does not import torch.

`dskd.methods.outside` finds methods that are not part of this package.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dskd.errors import unknown
from dskd.methods import outside
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
    """The names of all methods of this package.

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


def exists(name: object) -> bool:
    """Whether a name stands for a method, of this package or of another.

    Example:
        >>> exists("dskd"), exists("dksd")
        (True, False)
    """
    return isinstance(name, str) and (name in names() or outside.is_named(name))


def find(name: str) -> type[Method]:
    """The method called ``name``.

    Raises:
        InputError: There is none of this name (the nearest is suggested), or it is not part of
            this package and cannot be used here (see `dskd.methods.outside.find`).
    """
    if name not in names():
        if outside.is_named(name):
            return outside.find(name)
        raise unknown("method", name, [*names(), *outside.installed()])
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


__all__ = ["exists", "find", "names", "resolve", "summary"]
