"""Comparisons on the command line: they are run, and their table is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dskd.cli import console

if TYPE_CHECKING:
    from dskd.compare.grid import Grid
    from dskd.engine.tasks.settings import TaskRecipe
    from dskd.engine.user_objects import UserObjects


def compare_methods(
    recipe: TaskRecipe, names: Sequence[str], seeds: int, out: Path, **where: Any
) -> None:
    """Compares methods of another task than images.

    Args:
        recipe: What all runs share.
        names: The methods.
        seeds: The number of seeds.
        out: The folder of the comparison.
        **where: See `run_comparison`.
    """
    from dskd.compare import grid

    run_comparison(grid.plan(recipe, names, out, seeds=seeds), **where)


def run_comparison(
    plan: Grid,
    jobs: int | None = None,
    launcher: str = "processes",
    launcher_options: Mapping[str, Any] | None = None,
    objects: UserObjects | None = None,
) -> None:
    """Computes the missing runs of a comparison, and prints its table.

    Args:
        plan: The comparison.
        jobs: Number of processes, each for students of one seed. None for one, on a cluster for any
            number.
        launcher: Where runs are trained.
        launcher_options: Its settings.
        objects: Used in place of names.

    Raises:
        InputError: The comparison cannot be computed, or no run has a result.
    """
    from dskd.compare import progress, runner, table
    from dskd.compare.jobs import launcher_for
    from dskd.compare.summary import summarize

    with progress.live_table(plan) as callback:
        where = launcher_for(plan, plan.runs, jobs, launcher, launcher_options or {})
        comparison = runner.run_grid(plan, callback, objects, where)
    summaries = summarize(comparison.variants, comparison.test_images, comparison.baseline)
    metric = next((one.metric for one in summaries if one.seeds), plan.recipe.data.metric)
    console.table(*table.summary_table(summaries, metric, comparison.baseline))
    for line in table.notes(comparison, summaries):
        click.echo(line)
    table.check_results(plan, comparison)
