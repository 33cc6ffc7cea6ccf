"""Recipes: load a YAML file, apply ``key=value`` overrides, and check the result.

`load` is the way in. It reads a file, applies the overrides, and calls `resolve`, which checks all
values against `dskd.config.schema` and fills in the defaults.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from dskd import methods
from dskd.config.contradictions import (
    check_augmentation,
    check_cache_folder,
    check_cache_settings,
    check_dot,
    check_head,
    check_mixing,
    check_schedule,
    check_teaches,
    check_untrained,
    keys_of,
    refuse_ambiguous,
)
from dskd.config.optimizers import timm_optimizer
from dskd.config.overrides import all_keys, overridden
from dskd.config.schema import MethodSettings, Recipe
from dskd.config.short_forms import check_parts, check_sections, label
from dskd.data.catalog import DATASETS
from dskd.errors import InputError, as_given, call, option, unknown
from dskd.settings import validate
from dskd.storage.paths import as_path
from dskd.storage.yaml_file import read_yaml_file

log = logging.getLogger("dskd")


def load(name: str | None, overrides: Iterable[str] = ()) -> Recipe:
    """Loads a recipe by name or from a YAML file, and applies overrides.

    Without a recipe, the overrides name models and data, and what suits these is filled in (see
    `dskd.config.chosen`). A line says what.

    If an override changes ``method.name``, the file's method settings that the new method also has
    (such as ``temperature``) stay. The other ones are dropped. An override of ``method.preset``
    drops the file's other settings of the method, and one of ``data.augment`` its augmentations.

    Args:
        name: A name of `shipped`, or the path of a YAML file; None for no recipe.
        overrides: As in ``["train.epochs=10", "student.stages=[layer1,layer2]"]``.

    Raises:
        InputError: The recipe or a key does not exist, or a value does not fit.

    Example:
        >>> load("digits", ["train.epochs=2"]).train.epochs
        2
    """
    return compose(name, overrides).resolved()


def load_for_a_run(name: str | None, overrides: Iterable[str] = ()) -> Recipe:
    """Loads the recipe of a single run as `load` does, and refuses what it would not use.

    Raises:
        InputError: As `load`, or an override is refused by `check_teacher`.
    """
    overrides = list(overrides)
    recipe = load(name, overrides)
    check_teacher(recipe, overrides)
    return recipe


def check_teacher(recipe: Recipe, overrides: Iterable[str]) -> None:
    """Refuses overrides of a teacher that runs with the method of the recipe would not use.

    A warning names those that a trained teacher does not use.

    Raises:
        InputError: The method learns from no teacher.
    """
    check_teaches(recipe.teacher, recipe.method.name, keys_of(overrides))


@dataclass(frozen=True)
class Composed:
    """The values of a recipe, before they are checked.

    Attributes:
        values: Nested plain values.
        folder: Of all runs with this recipe.
        chosen: Lists what was filled in; empty with a recipe.
    """

    values: dict[str, Any]
    folder: Path
    chosen: str = ""

    def resolved(self) -> Recipe:
        """The checked recipe, see `resolve`. Logs what was filled in."""
        recipe = resolve(self.values, self.folder)
        if self.chosen:
            log.info(as_given(self.chosen))
        return recipe


def compose(name: str | None, overrides: Iterable[str] = ()) -> Composed:
    """The values of a recipe with overrides, as `load` checks them.

    Args:
        name: As for `load`.
        overrides: As for `load`.
    """
    if name is None:
        return complete(overridden({}, overrides))
    values, stem = read(name)
    return Composed(overridden(values, overrides), Path("runs") / stem)


def complete(values: Mapping[str, Any]) -> Composed:
    """Fills in what suits models and data, for a run without a recipe.

    Raises:
        InputError: There is no student or no data.
    """
    from dskd.config.chosen import fill_in  # it imports torch

    check_parts(values)
    filled, chosen = fill_in(values)
    return Composed(filled, Path("runs") / label(values), chosen)


def load_by_labels(name: str | None, overrides: Iterable[str] = ()) -> Recipe:
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
                f"{key} has no effect on training by labels; use {call('distill', name or '...')}"
            )
    return load(name, [*overrides, "method={name: ce}", "teacher=null"])


def shipped() -> list[str]:
    """Lists the recipes that come with the package.

    Example:
        >>> "digits" in shipped()
        True
    """
    return list(stems(_recipes()))


# Files of the package do not change, and reading YAML takes most of the time of loading a recipe.
@cache
def stems(root: Path) -> tuple[str, ...]:
    """The names of the recipes in a folder of the package and its subfolders."""
    names = (p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))
    return tuple(sorted(names))


@cache
def _shipped_values(path: Path) -> dict[str, Any]:
    return read_yaml_file(path, "recipe")


def preview(name: str) -> Recipe:
    """Reads a shipped recipe without checking its method, and so without importing torch.

    Example:
        >>> preview("digits").student.name
        'resnet8'
    """
    values, _ = read(name)
    return validate(Recipe, values)


def resolve(values: Mapping[str, Any], folder: Path) -> Recipe:
    """Checks a whole recipe before any work starts, and fills in the defaults.

    Args:
        values: Nested plain values, as read from YAML.
        folder: If the recipe sets no ``out``, the run's folder is ``<method>-seed<seed>`` in here.

    Raises:
        InputError: A key does not exist, a value does not fit, or two settings contradict.
    """
    if (task := values.get("task")) in methods.TASKS:
        raise InputError(f"this is a recipe of {task}; use the commands of `dskd {task}`")
    recipe = validate(Recipe, values, known=all_keys(values))
    if recipe.data.name not in DATASETS and not recipe.data.name.startswith("<"):
        raise unknown("data set", recipe.data.name, DATASETS)
    timm_optimizer(recipe.train.optimizer)
    check_cache_settings(recipe.teacher)
    check_augmentation(recipe.data, recipe.teacher)
    check_untrained(recipe.teacher)
    check_head(recipe.teacher)
    check_mixing(recipe.train, recipe.teacher)
    if task := methods.task_of(recipe.method.name):
        raise InputError(
            f"method.name: {recipe.method.name} is a method of {task}; use `dskd {task}`, or take "
            "a method of `dskd list methods`"
        )
    options = methods.resolve(recipe.method.name, recipe.method.options)
    method = MethodSettings(name=recipe.method.name, **options)
    teacher = recipe.teacher if methods.find(method.name).needs_teacher else None
    check_schedule(recipe.train, None if teacher and teacher.is_given else teacher)
    for key, free in (("student", recipe.student), ("teacher", recipe.teacher)):
        refuse_ambiguous(free.options if free else {}, f"{key}.options")
        if free and free.checkpoint_key is not None and free.checkpoint is None:
            raise InputError(f"{key}.checkpoint_key does nothing without {key}.checkpoint; drop it")
        if free and free.checkpoint is not None and free.pretrained:
            raise InputError(f"{key}.checkpoint and {key}.pretrained are two sources; drop one")
    if recipe.teacher and recipe.teacher.trust and not recipe.teacher.is_given:
        raise InputError(
            "teacher.trust does nothing without teacher.checkpoint, since a teacher that is "
            "trained first is not refused; drop it"
        )
    refuse_ambiguous(options, "method")
    if recipe.teacher is None and methods.find(method.name).needs_teacher:
        raise InputError(
            f"the method {method.name!r} needs a teacher; give one, as in teacher.name=resnet20"
        )
    check_dot(recipe.train, method.name)
    out = recipe.out or folder / f"{folder_name(method.name)}-seed{recipe.seed}"
    check_cache_folder(recipe.data, out)
    return recipe.changed(method=method, out=out)


def folder_name(method: str) -> str:
    """The name of a method without characters that a folder cannot have everywhere."""
    return method.strip("<>").replace(":", ".")


def _recipes() -> Path:
    """The folder of the shipped recipes."""
    return Path(str(resources.files("dskd.config") / "recipes"))


def read(name: str) -> tuple[dict[str, Any], str]:
    """Reads a recipe's values, and returns them with the label that names its runs.

    Raises:
        InputError: There is no such recipe, or it cannot be read.
    """
    values, stem = read_recipe(name, _recipes())
    check_sections(values)
    return values, stem


def read_recipe(name: str, root: Path) -> tuple[dict[str, Any], str]:
    """Reads the values of a shipped recipe or of a YAML file, and the label that names its runs.

    Args:
        name: The recipe or the file.
        root: The folder of the shipped recipes.

    Raises:
        InputError: There is no such recipe, or it cannot be read.
    """
    if name in stems(root):
        return copy.deepcopy(_shipped_values(root / f"{name}.yaml")), name
    if name.endswith((".yaml", ".yml")):
        return read_yaml_file(as_path(name, "recipe"), "recipe"), Path(name).stem
    if as_path(name, "recipe").is_dir():
        raise InputError(f"{name} is a folder and no recipe; for data, give {option('data', name)}")
    raise unknown("recipe", name, [*stems(root), "<your own>.yaml"])
