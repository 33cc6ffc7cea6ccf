"""Recipes of runs on graphs: load a YAML file, apply overrides, and check the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from dskd import methods
from dskd.config.contradictions import check_schedule, refuse_ambiguous
from dskd.config.overrides import all_keys, overridden
from dskd.config.recipe import folder_name, read_recipe, stems
from dskd.config.schema import MethodSettings
from dskd.engine.tasks.graphs.settings import DataName, GraphRecipe
from dskd.engine.tasks.graphs.sources import check_applies
from dskd.errors import InputError, option, unknown
from dskd.settings import validate
from dskd.storage.paths import as_path

PREFIX = "graphs/"
"""The names of the methods of graphs begin with it."""


def shipped() -> list[str]:
    """Lists the recipes of graphs that come with the package.

    Example:
        >>> "generated" in shipped()
        True
    """
    return stems(_recipes())


def _recipes() -> Path:
    return Path(str(resources.files("dskd.engine.tasks.graphs") / "recipes"))


def load(name: str | None, overrides: Iterable[str] = ()) -> GraphRecipe:
    """Loads a recipe by name or from a YAML file, and applies overrides.

    Names of methods may be given without ``graphs/``.

    Args:
        name: A name of `shipped`, or the path of a YAML file; None for no recipe.
        overrides: As in ``["train.epochs=10", "student.name=gcn"]``.

    Raises:
        InputError: The recipe or a key does not exist, or a value does not fit.

    Example:
        >>> load("generated", ["method.name=alone"]).method.name
        'graphs/alone'
    """
    values, stem = ({}, "own") if name is None else read_recipe(name, _recipes())
    named = [_with_task(override) for override in overrides]
    composed = overridden(_with_method(values), named, GraphRecipe)
    return resolve(composed, Path("runs/graphs") / stem)


def _with_task(override: str) -> str:
    key, _, text = override.partition("=")
    if key == "method.name" and "/" not in text:
        return f"{key}={PREFIX}{text}"
    return override


def _with_method(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the whole name of their method, by default alignahead."""
    method = values.get("method", {})
    if not isinstance(method, Mapping):
        return dict(values)
    name = method.get("name", "alignahead")
    whole = PREFIX + name if isinstance(name, str) and "/" not in name else name
    return {**values, "method": {**method, "name": whole}}


def resolve(values: Mapping[str, Any], folder: Path) -> GraphRecipe:
    """Checks a whole recipe before any work starts, and fills in the defaults.

    Args:
        values: Nested plain values, as read from YAML.
        folder: If the recipe sets no ``out``, the run's folder is ``<method>-seed<seed>`` in here.

    Raises:
        InputError: A key does not exist, a value does not fit, or two settings contradict.
    """
    given = _with_method(values)
    recipe = validate(GraphRecipe, given, known=all_keys(given, GraphRecipe))
    if not recipe.method.name.startswith(PREFIX):
        raise unknown("method", recipe.method.name, methods.names("graphs"))
    check_applies(recipe.data)
    check_schedule(recipe.train, recipe.teacher.epochs if recipe.teacher else None, None)
    options = methods.resolve(recipe.method.name, recipe.method.options)
    refuse_ambiguous(options, "method")
    if methods.find(recipe.method.name).needs_teacher and recipe.teacher is None:
        raise InputError(
            f"the method {recipe.method.name.removeprefix(PREFIX)!r} needs a teacher; give one, as "
            "in teacher.name=gat"
        )
    short = folder_name(recipe.method.name.removeprefix(PREFIX))
    out = recipe.out or folder / f"{short}-seed{recipe.seed}"
    return recipe.changed(method=MethodSettings(name=recipe.method.name, **options), out=out)


def data_settings(given: str) -> list[str]:
    """Overrides for graphs that are given by a name or as a file.

    Args:
        given: A name of `DataName`, or an .npz file.

    Raises:
        InputError: It is neither.

    Example:
        >>> data_settings("ppi"), data_settings("mine.npz")
        (['data.name=ppi'], ['data.name=npz', 'data.root=mine.npz'])
    """
    if given.endswith(".npz"):
        return ["data.name=npz", f"data.root={as_path(given, 'data')}"]
    if given in get_args(DataName) and given != "npz":
        return [f"data.name={given}"]
    raise unknown("data set", given, [*get_args(DataName)[1:], "<a file>.npz"])


def load_by_labels(name: str | None, overrides: Iterable[str] = ()) -> GraphRecipe:
    """Loads a recipe as `load` does, to train its student on the labels alone.

    Raises:
        InputError: As `load`, or an override sets the teacher or the method, which such a run does
            not use.
    """
    overrides = list(overrides)
    for override in overrides:
        key = override.partition("=")[0]
        if key.split(".")[0] in ("teacher", "method"):
            raise InputError(
                f"{key} has no effect on training by labels; use `dskd graphs distill`"
            )
    return load(name, [*overrides, f"method={{name: {PREFIX}alone}}", "teacher=null"])


def load_shared(name: str | None, overrides: Iterable[str] = ()) -> GraphRecipe:
    """Loads a recipe as `load` does, for a comparison, which names methods and folder elsewhere.

    Raises:
        InputError: As `load`, or an override sets the folder.
    """
    overrides = list(overrides)
    if any(override.startswith("out=") for override in overrides):
        raise InputError(
            f"out has no effect on a comparison; give its folder with {option('out', 'FOLDER')}"
        )
    return load(name, overrides)
