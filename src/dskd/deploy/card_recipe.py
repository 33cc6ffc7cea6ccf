"""The recipe in a model card: what makes the student again, without paths of the machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from dskd.config.schema import Recipe
from dskd.data.augmentation import SETS
from dskd.errors import printable
from dskd.models.catalog import HF
from dskd.settings import Settings

_OF_THE_MACHINE: Mapping[str, tuple[str, ...]] = {
    "data": ("cache_dir", "loading", "workers"),
    "teacher": ("cache_dir",),
    "train": ("device", "threads"),
}
"""Settings that say where and how fast a run is made, not what comes out."""
_NAMED = ("student", "teacher", "method")
"""Sections whose name may be an object or code of the user."""
FILES: Mapping[tuple[str, str], str] = {
    ("data", "root"): "the images",
    ("data", "unlabelled"): "the images without labels",
    ("student", "checkpoint"): "the weights that the student starts from",
    ("student", "pretrained"): "the weights that the student starts from",
    ("teacher", "checkpoint"): "the weights of the teacher",
    ("teacher", "pretrained"): "the weights that the teacher starts from",
}
"""The settings of `Recipe.PATHS` that a card keeps, each with a word for the files."""


def recipe_section(recipe: Recipe) -> str:
    """The text of the section, with the recipe in YAML folded away.

    Args:
        recipe: Of the run.
    """
    plain = card_recipe(recipe)
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return (
        f"{_how(recipe, plain)}\n\n<details><summary>The recipe</summary>\n\n"
        f"```yaml\n{text.strip()}\n```\n\n</details>"
    )


def _how(recipe: Recipe, plain: Mapping[str, Any]) -> str:
    """How the settings are used, as sentences."""
    train = recipe.train
    size = train.batch_size * train.accumulate
    text = f"{train.epochs} epochs with {size} images in a step, and seed {recipe.seed}."
    needed = ""
    if files := list(_files(recipe, plain)):
        needed = (
            " It names what does not come with this card, by the last part of each path: "
            f"{_series(files)}. Supply this, and write your own paths into the recipe."
        )
    names = [plain[part]["name"] for part in ("data", *_NAMED) if part in plain]
    if any(name.startswith("<") for name in names):
        return (
            f"{text} In the recipe, names in angle brackets stand for objects that were given in "
            f"Python.{needed}"
        )
    command = f"dskd {'train' if _by_labels(recipe) else 'distill'} recipe.yaml"
    if any(":" in name for name in names if not name.startswith(HF)):
        command += " --allow-code"
    return (
        f"{text} Save the recipe as `recipe.yaml`.{needed} Then `{command}` trains such a student "
        "again."
    )


def _by_labels(recipe: Recipe) -> bool:
    """Whether ``dskd train``, which replaces the method by ce and has no teacher, fits."""
    return recipe.method.name == "ce"


def _series(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _files(recipe: Recipe, plain: Mapping[str, Any]) -> Iterator[str]:
    """The files and folders that the recipe of a card names, for a reader.

    Args:
        recipe: Of the run.
        plain: The same in a card.
    """
    for (section, key), words in FILES.items():
        shown = plain.get(section, {}).get(key)
        if isinstance(shown, str):
            yield f"{words} `{printable(shown)}` (`{section}.{key}`)"
    for one in _shards_to_find(recipe):
        yield f"the shards `{printable(_last(one))}` (`data.shards`)"
    for section in ("student", "teacher"):
        name = getattr(recipe, section).name if section in plain else ""
        if public_model(name) != name:
            yield f"the folder of the {section} `{printable(_last(name))}` (`{section}.name`)"
    for section in _NAMED:
        name = plain.get(section, {}).get("name", "")
        if ":" in name and not name.startswith((HF, "<")):
            module = name.partition(":")[0]
            yield f"the Python module `{printable(module)}` (`{section}.name`)"
    for where, options in _options(recipe).items():
        if where.partition(".")[0] in plain:
            yield from (f"`{printable(_last(one))}` (`{where}`)" for one in _places(options))


def _options(recipe: Recipe) -> dict[str, Any]:
    """The settings whose types are not known, by the place in the recipe."""
    parts = {
        "student.options": recipe.student.options,
        "teacher.options": recipe.teacher.options if recipe.teacher is not None else {},
        "method": recipe.method.options,
    }
    return {f"{where}.{key}": one for where, own in parts.items() for key, one in own.items()}


def card_recipe(recipe: Recipe) -> dict[str, Any]:
    """The settings that make the student again. A path becomes its last part.

    Args:
        recipe: Of the run.
    """
    plain = recipe.plain()
    del plain["out"]
    if _by_labels(recipe):
        plain["teacher"] = None
    for section, keys in _OF_THE_MACHINE.items():
        for key in keys if plain[section] is not None else ():
            del plain[section][key]
    for section, key in FILES:
        if plain[section] is not None and isinstance(plain[section][key], str):
            plain[section][key] = _last(plain[section][key])
    if elsewhere := _shards_to_find(recipe):
        plain["data"]["shards"] = [
            _last(one) if one in elsewhere else one for one in _shards(recipe)
        ]
    for section in ("student", "teacher"):
        if plain[section] is not None:
            plain[section]["name"] = public_model(plain[section]["name"])
            plain[section]["options"] = _without_places(plain[section]["options"])
    plain["method"] = _without_places(plain["method"])
    return _without_defaults_of_none(plain, recipe)


def _without_defaults_of_none(plain: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The settings without those that are None by default, which says nothing to a reader.

    None stays where it replaces a value of the set ``data.augment``.
    """
    of_set = SETS[recipe.data.augment]
    short = {key: part for key, part in plain.items() if part is not None}
    for section in short.keys() - {"method"}:
        own = getattr(recipe, section)
        if isinstance(own, Settings):
            short[section] = {
                key: part
                for key, part in short[section].items()
                if part is not None
                or not own.is_default(key)
                or (section == "data" and key in of_set)
            }
    return short


def _shards(recipe: Recipe) -> list[str]:
    """The patterns of ``data.shards``."""
    shards = recipe.data.shards
    return [shards] if isinstance(shards, str) else shards or []


def _shards_to_find(recipe: Recipe) -> list[str]:
    """The patterns of shards that do not lie in the folder ``data.root``."""
    return [one for one in _shards(recipe) if recipe.data.root is None or _is_place(one)]


def _last(path: str) -> str:
    r"""The last part of a path of any system, or of a URL without its query.

    A query may hold a password.

    Example:
        >>> _last(r"C:\Users\me\photos"), _last("/home/me/photos/"), _last("s3://a/b.tar?key=1")
        ('photos', 'photos', 'b.tar')
    """
    text = path.partition("?")[0] if "://" in path else path
    parts = re.split(r"[\\/](?![^{}]*\})", text.rstrip("\\/"))  # "{a/b,c}" is one part
    return parts[-1] or text


def _is_place(text: str) -> bool:
    r"""Whether a text is a path that says something of the machine, or a URL.

    Example:
        >>> [_is_place(one) for one in (r"C:\Users\me", "/home/me", "~/a.pt", "https://a/b")]
        [True, True, True, True]
        >>> [_is_place(one) for one in ("timm/resnet18", "a.pt", "relu", "1/2")]
        [False, False, False, False]
    """
    return (
        "://" in text
        or re.match(r"\.{1,2}[\\/]|~[^\\/]*[\\/]|\\", text) is not None
        or PurePosixPath(text).is_absolute()
        or PureWindowsPath(text).is_absolute()
    )


def public_model(name: str) -> str:
    """The name of a model; ``hf/FOLDER`` with the last part of the folder.

    Example:
        >>> public_model("hf//home/me/teacher"), public_model("hf/timm/resnet18")
        ('hf/teacher', 'hf/timm/resnet18')
    """
    place = name.removeprefix(HF)
    return f"{HF}{_last(place)}" if name.startswith(HF) and _is_place(place) else name


def _without_places(value: Any) -> Any:
    """Options of a model or a method, in which a file is its last part."""
    if isinstance(value, dict):
        return {key: _without_places(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part) for part in value]
    return _last(value) if isinstance(value, str) and _is_place(value) else value


def _places(value: Any) -> Iterator[str]:
    """The files in options of a model or a method."""
    if isinstance(value, str) and _is_place(value):
        yield value
    parts = value.values() if isinstance(value, dict) else value
    for part in parts if isinstance(parts, Iterable) and not isinstance(parts, str) else ():
        yield from _places(part)
