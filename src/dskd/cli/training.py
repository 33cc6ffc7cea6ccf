"""Commands of training: ``train``, ``distill``, ``compare``, and ``init`` for their recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from dskd.cli import console
from dskd.cli.arguments import ALLOW_CODE, PATH, RESUME, takes_launcher, takes_recipe
from dskd.cli.comparing import run_comparison
from dskd.compare.variants import Weights
from dskd.config import recipe
from dskd.runtime import launch

if TYPE_CHECKING:
    from dskd.engine.result import Result

OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an existing run.")


@click.command("train")
@takes_recipe("data", "student", "epochs", "out")
@RESUME
@OVERWRITE
@ALLOW_CODE
def train_(
    recipe_name: str | None,
    overrides: list[str],
    resume: bool,
    overwrite: bool,
    allow_code: bool,
) -> None:
    """Train a student on the labels alone.

    RECIPE is a name of `dskd list recipes` or a YAML file. Without one, settings that suit the
    student and the data are chosen, and a line lists them. KEY=VALUE changes a setting, as in
    train.epochs=10. Example:

        dskd train --data photos/ --student timm/mobilenetv4_conv_small
    """
    from dskd.engine import run
    from dskd.engine.user_objects import UserObjects

    plan = recipe.load_by_labels(recipe_name, overrides)
    objects = UserObjects(allow_code=allow_code)
    print_result(run.train(plan, resume=resume, overwrite=overwrite, objects=objects))


@click.command("distill")
@takes_recipe("data", "teacher", "student", "method", "epochs", "out", "exits")
@RESUME
@OVERWRITE
@ALLOW_CODE
def distill_(
    recipe_name: str | None,
    overrides: list[str],
    resume: bool,
    overwrite: bool,
    allow_code: bool,
) -> None:
    """Distil a student from a teacher.

    A teacher without a checkpoint is trained first. RECIPE is a name of `dskd list recipes` or a
    YAML file. Without one, settings that suit the models and the data are chosen, and a line lists
    them. KEY=VALUE changes a setting, as in train.epochs=10. Example:

        dskd distill --data photos/ --teacher resnet20 --student resnet8
    """
    from dskd.engine import run
    from dskd.engine.user_objects import UserObjects

    plan = recipe.load_for_a_run(recipe_name, overrides)
    objects = UserObjects(allow_code=allow_code)
    print_result(run.distill(plan, resume=resume, overwrite=overwrite, objects=objects))


@click.command("compare")
@takes_recipe("data", "teacher", "student", "epochs")
@click.option(
    "--methods",
    "names",
    multiple=True,
    default=["ce,kd,dskd"],
    show_default=True,
    help="Names, separated by commas; 'all'; or with settings, as in dskd:beta=0.1. Repeatable.",
)
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds."
)
@click.option(
    "--weights",
    type=click.Choice(get_args(Weights)),
    default="equal",
    show_default=True,
    help="equal: ce = kd = 1 for all methods. literature: the preset literature of each method.",
)
@click.option("--out", type=PATH, help="Folder of the comparison.  [default: in runs/compare]")
@click.option(
    "--share-teacher/--no-share-teacher",
    default=True,
    show_default=True,
    help="Compute teacher outputs once a step for all students of a seed.",
)
@takes_launcher
@ALLOW_CODE
def compare_(
    recipe_name: str | None,
    overrides: list[str],
    names: tuple[str, ...],
    seeds: int,
    weights: Weights,
    out: Path | None,
    share_teacher: bool,
    jobs: int | None,
    launcher: str,
    launcher_options: dict[str, Any],
    allow_code: bool,
) -> None:
    """Compare methods over several seeds.

    All students share one teacher and see the same batches. Finished runs stay: the same command
    continues a comparison, and more methods or seeds extend it. --jobs N trains in N processes,
    with the same results. KEY=VALUE changes a setting, as in train.epochs=10. Example:

        dskd compare digits --methods ce,kd,dskd --seeds 5
    """
    from dskd.compare import grid
    from dskd.engine.user_objects import UserObjects

    plan = grid.load_plan(
        recipe_name,
        overrides,
        names,
        out,
        seeds=seeds,
        weights=weights,
        share_teacher=share_teacher,
    )
    run_comparison(plan, jobs, launcher, launcher_options, UserObjects(allow_code=allow_code))


@click.command("init")
@takes_recipe("data", "teacher", "student", "method", "epochs", "exits")
@click.option("--out", type=PATH, help="File to write.  [default: named by models and data]")
def init_(recipe_name: str | None, overrides: list[str], out: Path | None) -> None:
    """Write a recipe file from the options of `dskd distill`.

    With RECIPE, the file is a copy of it with your changes. Example:

        dskd init --data photos/ --teacher resnet20 --student resnet8
    """
    from dskd.config.recipe_file import write_recipe

    path = write_recipe(recipe.compose(recipe_name, overrides), out)
    click.echo(f"{path}  (run it with: dskd distill {path})")


def print_result(result: Result) -> None:
    """Prints the numbers of a finished run, and its folder."""
    from dskd.cli.results import result_rows

    if launch.is_rank_zero():
        console.table(["", "value"], result_rows(result))
        click.echo(f"run saved in {result.path}")
