"""From the arguments of a Python call to a recipe and the objects in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dskd.config.contradictions import (
    check_teaches,
    keys_of_teacher,
    warn_of_unused_training,
)
from dskd.config.overrides import method_for_all, with_method
from dskd.config.recipe import complete, read, resolve
from dskd.config.schema import Recipe
from dskd.config.short_forms import check_sections, label
from dskd.engine.given_data import DataArgument, split_data
from dskd.engine.user_objects import UserObjects, name_of
from dskd.errors import InputError
from dskd.methods import outside
from dskd.models.staged_model import StagedModel

Section = Mapping[str, Any]
"""Settings of a section of a recipe, as in ``{"epochs": 10}``."""
Model = str | nn.Module | Section
"""A model: its name, a module, or settings."""
Use = Literal["run", "labels", "comparison"]
"""What a recipe is resolved for."""
Data = DataArgument
"""Images: a folder, another source, the name of a data set, a data set, or settings."""
_OF_OWN_MODEL = {
    *("epochs", "lr", "checkpoint", "checkpoint_key", "pretrained", "options"),
    *("stages", "mean", "std"),
}
"""Settings of a recipe's own model, which do not hold for a module in its place."""


def resolve_arguments(
    recipe: str | Path | Section | None,
    parts: Mapping[str, Any],
    settings: Mapping[str, Any],
    allow_code: bool,
    use: Use,
) -> tuple[Recipe, UserObjects]:
    """The checked recipe, and the objects that replace names in it.

    Args:
        recipe: As the user gave it.
        parts: Student, teacher and data; None stands for the recipe's.
        settings: Method, epochs, train, seed and out; None stands for the recipe's.
        allow_code: For the objects.
        use: What the recipe is for. ``run`` is a single run: a teacher that it would not use is
            refused. ``labels`` trains without a teacher: that of the recipe is dropped. For
            ``comparison`` see `dskd.config.overrides.method_for_all`.

    Raises:
        InputError: An argument cannot be used.
    """
    values, folder = _values(recipe)
    if use == "labels":
        values["teacher"] = None
    objects = _with_parts(values, parts, allow_code)
    set_given(values, settings)
    if use == "comparison":
        method_for_all(values, "dskd", "ce")
    resolved = _resolved(values, folder)
    keys = keys_of_teacher(parts.get("teacher"))
    if use == "run":
        check_teaches(resolved.teacher, resolved.method.name, keys)
    else:
        warn_of_unused_training(resolved.teacher, keys)
    return resolved, objects


def _resolved(values: dict[str, Any], folder: Path | None) -> Recipe:
    """The checked recipe of these values; without a folder, what suits them is filled in."""
    return complete(values).resolved() if folder is None else resolve(values, folder)


def _with_parts(values: dict[str, Any], parts: Mapping[str, Any], allow_code: bool) -> UserObjects:
    """Puts student, teacher and data into the values of a recipe, and returns their objects.

    Raises:
        InputError: One cannot be used.
    """
    found: dict[str, Any] = {}
    for name, part in parts.items():
        if part is None:
            continue
        section, found[name] = _split(part, name)
        own = values.get(name) or {}
        if name != "data" and found[name] is not None and own.get("name") != section["name"]:
            own = {key: value for key, value in own.items() if key not in _OF_OWN_MODEL}
        values[name] = {**own, **section}
        for key in ("epochs", "lr"):
            if name == "teacher" and found[name] is not None and section.get(key) is not None:
                raise InputError(
                    f"teacher.{key} does not apply: a module counts as trained; drop it"
                )
    return UserObjects(found.get("data"), found.get("student"), found.get("teacher"), allow_code)


def _values(recipe: str | Path | Section | None) -> tuple[dict[str, Any], Path | None]:
    """The values of a recipe, and the folder of its runs; None without a recipe."""
    if recipe is None:
        return {}, None
    if isinstance(recipe, Mapping):
        check_sections(recipe)
        return dict(recipe), Path("runs") / label(recipe)
    values, stem = read(str(recipe))
    return values, Path("runs") / stem


def set_given(values: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Puts method, epochs, train, seed and out into the values of a recipe, if they are given.

    Args:
        values: The recipe as plain values; it changes.
        settings: What was given, by name.

    Raises:
        InputError: Two settings contradict each other, or a method is neither named nor described.
    """
    if settings["method"] is not None:
        values["method"] = with_method(values.get("method"), method_settings(settings["method"]))
    given, epochs = settings["train"], settings["epochs"]
    if given is not None and not isinstance(given, Mapping):
        values["train"] = given  # it is refused with the rest
    elif given is not None or epochs is not None:
        own = {} if epochs is None else {"epochs": epochs}
        listed = (given or {}).get("epochs", epochs)
        if epochs is not None and epochs != listed:
            raise InputError(
                f"epochs={epochs!r} and train={{'epochs': {listed!r}}} contradict each other; give "
                "one of them"
            )
        values["train"] = {**(values.get("train") or {}), **(given or {}), **own}
    for key in ("seed", "out"):
        if settings.get(key) is not None:
            values[key] = settings[key]


def _split(part: Any, what: str) -> tuple[dict[str, Any], Any]:
    """Splits an argument into its settings and its object.

    Args:
        part: A name, an object, or a mapping; for data also a folder.
        what: Name of the argument.
    """
    if what == "data":
        return split_data(part)
    values = {"module": part} if isinstance(part, nn.Module) else named(part, what)
    module = values.pop("module", None)
    if module is None:
        return values, None
    if not isinstance(module, nn.Module):
        raise InputError(f"{what}: module must be a Module, got {type(module).__name__}")
    if isinstance(module, StagedModel):  # it normalises its images itself
        values = _own_settings(module) | values
        module = module.module
    return {"name": name_of(module)} | values, module


def _own_settings(model: StagedModel) -> dict[str, Any]:
    """The statistics and stages of a model with stages, such as `dskd.load_deployed` returns."""
    own: dict[str, Any] = {key: getattr(model, key).flatten().tolist() for key in ("mean", "std")}
    return own if model.stage_names is None else own | {"stages": [*model.stage_names]}


def method_settings(part: Any) -> dict[str, Any]:
    """A method's name, class or settings as settings.

    Raises:
        InputError: It is none of these.
    """
    values: dict[str, Any] = {"name": part} if isinstance(part, type) else named(part, "method")
    if isinstance(values.get("name"), type):
        values["name"] = outside.give(values["name"])
    return values


def named(part: Any, what: str) -> dict[str, Any]:
    """A name or a mapping as settings.

    Args:
        part: As the user gave it.
        what: Name of the argument.

    Raises:
        InputError: It is neither.
    """
    if isinstance(part, str):
        return {"name": part}
    if isinstance(part, Mapping):
        return dict(part)
    raise InputError(
        f"{what}: a name, an object or a mapping of settings is needed, got {type(part).__name__}"
    )
