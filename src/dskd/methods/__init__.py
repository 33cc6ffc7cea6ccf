"""The methods. The file ``NAME.py`` with a class of that name, in any capitals, is the method NAME.

``simkd.py`` has the class ``SimKD``, so it is the method ``simkd``; ``base.py`` has no class
``Base``, so it is not a method. Names and summaries are read from the source, and a method is
imported when it is used: to list them does not import torch.

`dskd.methods.outside` finds methods that are not part of this package. Methods of other tasks than
images are in the folder of the task. Their names begin with it, as in ``graphs/alignahead``.
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


TASKS = {
    "graphs": "dskd.engine.tasks.graphs.methods",
    "segment": "dskd.engine.tasks.segmentation.methods",
}
"""The modules with the methods of other tasks, which list them as ``METHODS``."""


@functools.cache
def _classes() -> dict[str, ast.ClassDef]:
    """The class of each method, by the method's name."""
    return {
        path.stem: node
        for path in sorted(Path(__file__).parent.glob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name.lower() == path.stem.replace("_", "")
    }


def names(task: str = "") -> list[str]:
    """The names of all methods of this package.

    Args:
        task: A task with methods of its own; empty for images.

    Example:
        >>> "dskd" in names(), "graphs/dskd" in names("graphs")
        (True, True)
    """
    return [f"{task}/{name}" for name in _methods_of(task)] if task else list(_classes())


def task_of(name: str) -> str:
    """The task that a method belongs to; empty for images.

    Example:
        >>> task_of("graphs/dskd"), task_of("dskd")
        ('graphs', '')
    """
    task = name.partition("/")[0]
    return task if "/" in name and task in TASKS else ""


def short_name(name: str) -> str:
    """The name of a method without its task.

    Example:
        >>> short_name("graphs/dskd"), short_name("dskd")
        ('dskd', 'dskd')
    """
    task = task_of(name)
    return name.removeprefix(f"{task}/") if task else name


def in_task(short: str, task: str) -> str:
    """The whole name of a method of a task.

    Example:
        >>> in_task("dskd", "graphs"), in_task("dskd", "")
        ('graphs/dskd', 'dskd')
    """
    return f"{task}/{short}" if task and task_of(short) != task else short


def _methods_of(task: str) -> Mapping[str, type[Method]]:
    found: Mapping[str, type[Method]] = importlib.import_module(TASKS[task]).METHODS
    return found


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
    if not isinstance(name, str):
        return False
    if task := task_of(name):
        return name in names(task)
    return name in names() or outside.is_named(name)


def find(name: str) -> type[Method]:
    """The method called ``name``.

    Raises:
        InputError: There is none of this name (the nearest is suggested), or it is not part of
            this package and cannot be used here (see `dskd.methods.outside.find`).
    """
    if task := task_of(name):
        if name not in names(task):
            raise unknown("method", name, names(task))
        return _methods_of(task)[name.partition("/")[2]]
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


__all__ = ["exists", "find", "in_task", "names", "resolve", "short_name", "summary", "task_of"]
