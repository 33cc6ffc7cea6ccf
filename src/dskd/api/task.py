"""What the calls of all tasks other than images have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dskd.compare.grid import plan
from dskd.compare.jobs import launcher_for
from dskd.compare.progress import live_table
from dskd.compare.runner import run_grid
from dskd.compare.summary import Summary, summarize
from dskd.config.overrides import overridden
from dskd.engine.arguments import Section, method_settings, named, set_given
from dskd.engine.progress import python_output
from dskd.engine.result import Result
from dskd.engine.run import run_job
from dskd.engine.task import Job
from dskd.engine.tasks.recipes import TaskRecipes
from dskd.engine.tasks.settings import R
from dskd.methods import in_task
from dskd.runtime.launchers.choose import named_launcher
from dskd.storage.paths import as_path


def resolved(
    recipes: TaskRecipes[R],
    data_settings: Callable[[str | Path], list[str]],
    values: dict[str, Any],
    folder: Path,
    parts: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> R:
    """The checked recipe of a call.

    Args:
        recipes: Of the task.
        data_settings: From a name or a file to overrides.
        values: Those of the recipe, see `TaskRecipes.read`.
        folder: Of its runs.
        parts: Student, teacher and data; None stands for the recipe's.
        settings: Method, epochs, train, seed and out; None stands for the recipe's.

    Raises:
        InputError: An argument cannot be used.
    """
    for name, part in parts.items():
        if name == "data" and isinstance(part, str | Path):
            values = overridden(values, data_settings(part), recipes.model)
        elif part is not None:
            values[name] = {**(values.get(name) or {}), **named(part, name)}
    given = dict(settings)
    if given["method"] is not None:
        method = method_settings(given["method"])
        if "name" in method:
            method["name"] = in_task(method["name"], recipes.task)
        given["method"] = method
    set_given(values, given)
    return recipes.resolve(values, folder)


def alone(
    recipes: TaskRecipes[R], recipe: str | Path | Section | None
) -> tuple[dict[str, Any], Path]:
    """A recipe without its teacher, with the method that trains by labels alone.

    Args:
        recipes: Of the task.
        recipe: As the user gave it.

    Returns:
        Its values, and the folder of its runs.
    """
    values, folder = recipes.read(recipe)
    method = {"name": recipes.prefix + recipes.alone}
    return {**values, "teacher": None, "method": method}, folder


def shared(
    recipes: TaskRecipes[R], recipe: str | Path | Section | None, teacher: object
) -> tuple[dict[str, Any], Path]:
    """A recipe for runs of any method, as `TaskRecipes.load_shared` takes it.

    Args:
        recipes: Of the task.
        recipe: As the user gave it.
        teacher: The one that is given beside it, if there is one.

    Returns:
        Its values, and the folder of its runs.
    """
    values, folder = recipes.read(recipe)
    return (values if teacher is not None else recipes.for_all(values)), folder


def run_in_python(job: Job, resume: bool, overwrite: bool, verbose: int) -> Result:
    """Runs a job, with the output of calls from Python."""
    with python_output(verbose):
        return run_job(job, resume=resume, overwrite=overwrite)


def compare(
    recipe: R,
    methods: str | Sequence[str],
    seeds: int,
    out: str | Path | None,
    jobs: int | None,
    launcher: str | Section,
    verbose: int,
) -> list[Summary]:
    """Runs a comparison in its folder.

    Args:
        recipe: What all runs share.
        methods: The names.
        seeds: The number of seeds.
        out: Its folder; None for one in ``runs/compare``.
        jobs: Number of processes.
        launcher: Where runs are trained.
        verbose: As for `dskd.distill`.

    Raises:
        InputError: An argument cannot be used.
    """
    assert recipe.out is not None, "a resolved recipe has its folder"
    default = Path("runs/compare") / f"{recipe.task}-{recipe.out.parent.name}"
    path = default if out is None else as_path(out, "out")
    names = [methods] if isinstance(methods, str) else methods
    with python_output(verbose):
        grid = plan(recipe, names, path, seeds=seeds)
        where = launcher_for(grid, grid.runs, jobs, *named_launcher(launcher))
        with live_table(grid) as callback:
            comparison = run_grid(grid, callback, launcher=where)
    return summarize(comparison.variants, comparison.test_images, comparison.baseline)
