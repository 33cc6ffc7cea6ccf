"""The command ``tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dskd.cli import console
from dskd.cli.arguments import ALLOW_CODE, PATH, takes_launcher, takes_recipe


@click.command("tune")
@takes_recipe("data", "teacher", "student", "method", "epochs")
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, help="Number of trials."
)
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="Seeds of each trial."
)
@click.option("--out", type=PATH, help="Folder of the study.  [default: in runs/tune]")
@takes_launcher
@ALLOW_CODE
def tune_(
    recipe_name: str | None,
    overrides: list[str],
    trials: int,
    seeds: int,
    out: Path | None,
    jobs: int | None,
    launcher: str,
    launcher_options: dict[str, Any],
    allow_code: bool,
) -> None:
    """Tune settings of a run.

    A setting of the method, the training or the augmentation is tuned if it has a range,
    LOW..HIGH or LOW..HIGH:log, or several choices. Trials are compared by the accuracy on
    validation images; those that fall behind the median are pruned. The best configuration alone is
    tested, and written as a recipe file. The same command continues.

    Example:
        dskd tune digits data.val_fraction=0.1 method.beta=1..100:log
    """
    from dskd.compare.jobs import launcher_for
    from dskd.compare.tuning.results import notes, trial_table
    from dskd.compare.tuning.start import load_search
    from dskd.compare.tuning.tune import tune
    from dskd.engine.user_objects import UserObjects

    objects = UserObjects(allow_code=allow_code)
    search = load_search(recipe_name, overrides, out, seeds, objects)
    where = launcher_for(search, trials, jobs, launcher, launcher_options)
    result = tune(search, trials, where)
    console.table(*trial_table(result.trials, result.metric))
    for line in notes(result):
        click.echo(line)
