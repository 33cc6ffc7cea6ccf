"""The arguments that the commands of other tasks than images have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from dskd.cli.arguments import PATH, split_arguments, takes_launcher, with_short_forms
from dskd.cli.training import print_result
from dskd.errors import option

if TYPE_CHECKING:
    from dskd.engine.task import Job
    from dskd.engine.tasks.recipes import TaskRecipes

Command = Callable[..., None]


def takes_task_recipe(
    flags: Mapping[str, Callable[[Command], Command]],
    keys: Mapping[str, str],
    data_settings: Callable[[str], list[str]],
) -> Callable[..., Callable[[Command], Command]]:
    """Makes a decorator that gives a command of a task its recipe and some short forms.

    The decorator takes names of flags. The command gets ``recipe_name`` and ``overrides``.

    Args:
        flags: The options of the task, by name.
        keys: The setting that each option sets; ``data`` has no key.
        data_settings: Takes the value of ``data``, and gives overrides.
    """

    def takes(*names: str) -> Callable[[Command], Command]:
        def decorate(function: Command) -> Command:
            @functools.wraps(function)
            def run(arguments: tuple[str, ...], **options: Any) -> None:
                given = {name: options.pop(name) for name in names}
                recipe, changes = split_arguments(arguments)
                short = {
                    option(name, str(value)): data_settings(value)
                    if name == "data"
                    else [f"{keys[name]}={value}"]
                    for name, value in given.items()
                    if value is not None
                }
                overrides = with_short_forms(short, changes)
                function(recipe_name=recipe, overrides=overrides, **options)

            command: Command = run
            for name in reversed(names):
                command = flags[name](command)
            return click.argument("arguments", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...")(command)

        return decorate

    return takes


def run_task(
    recipes: TaskRecipes[Any],
    job: Callable[[Any], Job],
    recipe: str | None,
    overrides: list[str],
    *,
    alone: bool = False,
    **how: bool,
) -> None:
    """Trains students of a task, and prints the result.

    Args:
        recipes: Of the task.
        job: Makes the run of a recipe.
        recipe: A shipped recipe or a YAML file; None for none.
        overrides: Changed settings.
        alone: Whether the student learns from the labels alone.
        **how: ``resume`` and ``overwrite``, see `dskd.engine.run.run_job`.
    """
    from dskd.engine.run import run_job

    load = recipes.load_alone if alone else recipes.load
    print_result(run_job(job(load(recipe, overrides)), **how))


def takes_seeds(command: Command) -> Command:
    """Gives a comparison the number of its seeds, its folder, and where its runs are trained."""
    for decorate in (
        takes_launcher,
        click.option(
            "--out", type=PATH, help="Folder of the comparison.  [default: in runs/compare]"
        ),
        click.option(
            "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds."
        ),
    ):
        command = decorate(command)
    return command
