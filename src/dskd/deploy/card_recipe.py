"""The recipe in a model card: what makes the student again, without paths of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dskd.config.schema import Recipe
from dskd.errors import printable

_OF_THE_MACHINE: Mapping[str, tuple[str, ...]] = {
    "data": ("cache_dir", "loading", "workers"),
    "teacher": ("cache_dir",),
    "train": ("device", "threads"),
}
"""Settings that say where and how fast a run is made, not what comes out."""


def recipe_section(recipe: Recipe) -> str:
    """The text of the section, with the recipe in YAML folded away.

    Args:
        recipe: Of the run.
    """
    text = yaml.safe_dump(card_recipe(recipe), sort_keys=False, allow_unicode=True)
    return (
        f"{_how(recipe)}\n\n<details><summary>The recipe</summary>\n\n"
        f"```yaml\n{text.strip()}\n```\n\n</details>"
    )


def _how(recipe: Recipe) -> str:
    """How the settings are used, as sentences."""
    train = recipe.train
    size = train.batch_size * train.accumulate
    text = f"{train.epochs} epochs with {size} images in a step, and seed {recipe.seed}."
    parts = (recipe.data, recipe.student, recipe.teacher)
    if any(part is not None and part.name.startswith("<") for part in parts):
        return f"{text} Names in angle brackets stand for objects that were given in Python."
    verb = "train" if recipe.teacher is None else "distill"
    images = ""
    if recipe.data.root is not None:
        images = f" in the folder that holds `{printable(_last(recipe.data.root))}`"
    return (
        f"{text} Save the recipe as `recipe.yaml`; `dskd {verb} recipe.yaml`{images} trains such a "
        "student again."
    )


def card_recipe(recipe: Recipe) -> dict[str, Any]:
    """The settings that make the student again. A path becomes its last part.

    Args:
        recipe: Of the run.
    """
    plain = recipe.plain()
    del plain["out"]
    for section, keys in _OF_THE_MACHINE.items():
        for key in keys if plain[section] is not None else ():
            del plain[section][key]
    for section, key in recipe.PATHS:
        if plain[section] is not None and isinstance(plain[section].get(key), str):
            plain[section][key] = _last(plain[section][key])
    if plain["data"]["shards"] is not None:
        plain["data"]["shards"] = _last_of_each(plain["data"]["shards"])
    for section in ("student", "teacher"):
        if plain[section] is not None:
            plain[section]["name"] = _model(plain[section]["name"])
    found: dict[str, Any] = _without_absolute(plain)
    return found


def _last(path: str | Path) -> str:
    """The last part of a path, or of a URL without its query, which may hold a password."""
    text = str(path).partition("?")[0] if "://" in str(path) else str(path)
    return text.rstrip("/").rpartition("/")[2] or text


def _last_of_each(patterns: str | list[str]) -> str | list[str]:
    return _last(patterns) if isinstance(patterns, str) else [_last(one) for one in patterns]


def _model(name: str) -> str:
    """The name of a model; ``hf/FOLDER`` with the last part of the folder.

    Example:
        >>> _model("hf//home/me/teacher"), _model("hf/timm/resnet18")
        ('hf/teacher', 'hf/timm/resnet18')
    """
    return f"hf/{_last(name)}" if name.startswith("hf//") else name


def _without_absolute(value: Any) -> Any:
    """Values without the folders of the machine, as the options of a model may name one.

    Settings without a value are left out: there is none whose default is a value.
    """
    if isinstance(value, dict):
        return {key: _without_absolute(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_absolute(part) for part in value]
    return _last(value) if isinstance(value, str) and Path(value).is_absolute() else value
