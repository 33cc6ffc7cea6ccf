"""From the arguments of the command line or of a Python call to a study."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dskd import methods
from dskd.compare.grid import folder_of_runs
from dskd.compare.tuning.search import Search
from dskd.compare.tuning.space import Tuned, split_space
from dskd.config.recipe import check_teacher, compose
from dskd.config.schema import Recipe
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, option


def load_search(
    recipe_name: str | None,
    overrides: Iterable[str],
    out: Path | None,
    seeds: int,
    objects: UserObjects,
) -> Search:
    """The study of a command.

    Args:
        recipe_name: A shipped recipe or a YAML file; None for no recipe.
        overrides: Settings as ``key=value``. Those with a range or choices are tuned.
        out: The folder of the study; None for ``runs/tune/<recipe>``.
        seeds: Number of seeds of each trial.
        objects: Objects in place of names.

    Raises:
        InputError: A name or a setting does not exist or does not fit.
    """
    overrides = list(overrides)
    if any(override.startswith("out=") for override in overrides):
        raise InputError(
            f"out has no effect on tuning; give its folder with {option('out', 'FOLDER')}"
        )
    fixed, _ = split_space(overrides, "")
    composed = compose(recipe_name, fixed)
    recipe = composed.resolved()
    check_teacher(recipe, overrides)
    _, space = split_space(overrides, recipe.method.name)
    path = folder_of_runs(composed, recipe_name, out, "tune", "study")
    return make_search(recipe, space, path, seeds, objects)


def make_search(
    recipe: Recipe, space: Iterable[Tuned], path: Path, seeds: int, objects: UserObjects
) -> Search:
    """A study of ``seeds`` seeds a trial, starting at ``recipe.seed``.

    Raises:
        InputError: ``seeds`` is below 1.
    """
    if not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"seeds: a number of at least 1 is needed, got {seeds!r}")
    numbers = tuple(range(recipe.seed, recipe.seed + seeds))
    if not methods.find(recipe.method.name).needs_teacher:
        recipe = recipe.changed(teacher=None)
    return Search(recipe, tuple(space), numbers, path, objects)
