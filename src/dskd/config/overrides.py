"""Overrides: settings as ``key=value`` that change the values of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dskd import methods
from dskd.config.base_recipe import BaseRecipe
from dskd.config.schema import Recipe
from dskd.config.text_values import setting_value
from dskd.errors import InputError, brief
from dskd.settings import Settings, known_keys, signature_settings, unknown_key


def overridden(
    values: dict[str, Any], overrides: Iterable[str], model: type[BaseRecipe] = Recipe
) -> dict[str, Any]:
    """The values with overrides, see `dskd.config.recipe.load`.

    Args:
        values: Nested plain values of a recipe. They are changed.
        overrides: As ``key=value``.
        model: The settings of the recipe; others than `Recipe` for other tasks.

    Raises:
        InputError: A key does not exist, or a value is not well-formed.
    """
    changes = [_split(override) for override in overrides]
    others = [text for key, text in changes if key == "method.name"]
    if others and isinstance(values.get("method"), dict):
        values["method"] = _shared(values["method"], others[-1])
    if any(key == "method.preset" for key, _ in changes) and isinstance(values.get("method"), dict):
        values["method"] = _named(values["method"])
    method = _last_method(values, changes, model)
    if any(key == "data.augment" for key, _ in changes) and isinstance(values.get("data"), dict):
        own = model.AUGMENTATIONS
        values["data"] = {key: one for key, one in values["data"].items() if key not in own}
    for key, text in changes:
        _override(values, key, text, method, model)
    return values


def with_method(settings: object, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's method settings with changes; of another method, only what it also has stays.

    A preset takes the place of all settings before it.

    Args:
        settings: The section ``method`` of the recipe, or None.
        changes: Settings to add, usually with a ``name``.
    """
    before = settings if isinstance(settings, dict) else {}
    if changes.get("preset") is not None:
        before = _named(before)
    return {**_shared(before, changes.get("name", before.get("name", "dskd"))), **changes}


def method_for_all(values: dict[str, Any], default: str, alone: str) -> None:
    """Takes ``alone`` in place of a comparison's method that needs a teacher, if there is none.

    A comparison trains the methods that it names. That of its recipe has settings for these, and
    must not have the recipe refused.

    Args:
        values: Nested plain values of the recipe. They are changed.
        default: The method of a recipe that names none.
        alone: The method that takes the place of one that needs a teacher.
    """
    method = values.get("method")
    if values.get("teacher") is not None or not isinstance(method, dict | None):
        return
    name = (method or {}).get("name", default)
    if methods.exists(name) and methods.find(name).needs_teacher:
        values["method"] = {"name": alone}


def all_keys(values: Mapping[str, Any], model: type[Settings] = Recipe) -> list[str]:
    """Lists every key that a recipe may have, including those of its method.

    Args:
        values: The recipe as plain values. Only the method's name is read.
        model: The settings of the recipe.
    """
    name = _method_name(values)
    keys = known_keys(model)
    if methods.exists(name):
        keys += known_keys(signature_settings(methods.find(str(name)).__init__), "method.")
    return keys


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    """Only the name of the method, for a preset: it takes the place of the other settings."""
    return {key: value for key, value in settings.items() if key == "name"}


def _shared(settings: dict[str, Any], method: Any) -> dict[str, Any]:
    """The settings that ``method`` also has; all of them if it is the same or unknown."""
    if settings.get("name", "dskd") == method or not methods.exists(method):
        return settings
    known = signature_settings(methods.find(method).__init__).model_fields
    return {key: value for key, value in settings.items() if key in known}


def _split(override: str) -> tuple[str, str]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(
            f"{brief(override)} is not key=value; write it as in train.epochs=10, put a value with "
            "spaces in quotes, and give the recipe, if there is one, before all settings"
        )
    return key, text


def _last_method(
    values: Mapping[str, Any], changes: Iterable[tuple[str, str]], model: type[Settings]
) -> object:
    """The method that the recipe ends with. It types its settings, which may come before it."""
    name = _method_name(values)
    for key, text in changes:
        if key == "method.name":
            name = text
        elif key == "method":
            name = _method_name({"method": setting_value(key, text, name, model)})
    return name


def _method_name(values: Mapping[str, Any]) -> object:
    method = values.get("method")
    return method.get("name", "dskd") if isinstance(method, dict) else "dskd"


def _override(
    values: dict[str, Any], key: str, text: str, method: object, model: type[Settings]
) -> None:
    """Sets ``a.b=text`` in nested values."""
    value = setting_value(key, text, method, model)
    *path, last = key.split(".")
    section = values
    for part in path:
        inner = section.setdefault(part, {})
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise unknown_key(key, all_keys(values, model))
        section = inner
    section[last] = value
