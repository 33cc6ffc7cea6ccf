"""The commands of ``dskd``, one function each.

A command reads its arguments, calls the package and prints what it returns. Commands import torch
only when they run, so that ``dskd --help`` answers at once.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from dskd.cli import console, listing
from dskd.cli.arguments import BEST, LAST, PATH, RESUME, takes_recipe, which_weights
from dskd.cli.exit_codes import exit_code, open_streams, say
from dskd.compare.variants import Weights
from dskd.config import recipe
from dskd.errors import Stopped, on_command_line
from dskd.runtime import launch
from dskd.version import __version__

if TYPE_CHECKING:
    from dskd.engine.result import Result


_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an existing run.")
_CODE = click.option("--allow-code", is_flag=True, help="Allow package.module:function models.")
_ROOT = click.option("--root", type=PATH, help="Folder of the data set's files.")
_RUN = click.argument("run_path", metavar="RUN", type=PATH)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="dskd")
@click.pass_context
def cli(context: click.Context) -> None:
    """Make a vision model small: knowledge distillation with deep supervision."""
    context.with_resource(on_command_line())
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("train")
@takes_recipe("data", "student", "epochs", "out")
@RESUME
@_OVERWRITE
@_CODE
def train_(
    recipe_name: str | None,
    overrides: list[str],
    resume: bool,
    overwrite: bool,
    allow_code: bool,
) -> None:
    """Train a student on the labels alone.

    RECIPE is a name of `dskd list recipes` or a YAML file. Without one, settings that suit the
    student and the data are chosen, and a line lists them. Example:

        dskd train --data photos/ --student timm/mobilenetv4_conv_small
    """
    from dskd.engine import run
    from dskd.engine.build import UserObjects

    plan = recipe.load_by_labels(recipe_name, overrides)
    objects = UserObjects(allow_code=allow_code)
    _print_result(run.train(plan, resume=resume, overwrite=overwrite, objects=objects))


@cli.command("distill")
@takes_recipe("data", "teacher", "student", "method", "epochs", "out")
@RESUME
@_OVERWRITE
@_CODE
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
    them. Example:

        dskd distill --data photos/ --teacher timm/resnet50 --student timm/mobilenetv4_conv_small
    """
    from dskd.engine import run
    from dskd.engine.build import UserObjects

    plan = recipe.load(recipe_name, overrides)
    objects = UserObjects(allow_code=allow_code)
    _print_result(run.distill(plan, resume=resume, overwrite=overwrite, objects=objects))


@cli.command("compare")
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
    help="equal: ce = kd = 1 for all methods. literature: the weights of each publication.",
)
@click.option("--out", type=PATH, help="Folder of the comparison.  [default: in runs/compare]")
@click.option(
    "--share-teacher/--no-share-teacher",
    default=True,
    show_default=True,
    help="Compute teacher outputs once a step for all students of a seed.",
)
@_CODE
def compare_(
    recipe_name: str | None,
    overrides: list[str],
    names: tuple[str, ...],
    seeds: int,
    weights: Weights,
    out: Path | None,
    share_teacher: bool,
    allow_code: bool,
) -> None:
    """Compare methods over several seeds.

    All students have one teacher and see the same batches. Finished runs stay: the same command
    continues a comparison, and more methods or seeds extend it. Example:

        dskd compare digits --methods ce,kd,dskd --seeds 5
    """
    from dskd.compare import grid, progress, runner, table
    from dskd.compare.summary import summarize
    from dskd.engine.build import UserObjects

    plan = grid.load_plan(
        recipe_name,
        overrides,
        names,
        out,
        seeds=seeds,
        weights=weights,
        share_teacher=share_teacher,
    )
    with progress.live_table(plan) as callback:
        comparison = runner.run_grid(plan, callback, UserObjects(allow_code=allow_code))
    summaries = summarize(comparison.variants, comparison.test_images)
    console.table(*table.summary_table(summaries))
    for line in table.notes(comparison, summaries):
        click.echo(line)


@cli.command("init")
@takes_recipe("data", "teacher", "student", "method", "epochs")
@click.option("--output", type=PATH, help="File to write.  [default: named by models and data]")
def init_(recipe_name: str | None, overrides: list[str], output: Path | None) -> None:
    """Write the recipe file that the same options of `dskd distill` stand for.

    With RECIPE, a copy of it with your changes. Example:

        dskd init --data photos/ --teacher timm/resnet50 --student timm/mobilenetv4_conv_small
    """
    from dskd.config.recipe_file import write_recipe

    path = write_recipe(recipe.compose(recipe_name, overrides), output)
    click.echo(f"{path}  (run it with: dskd distill {path})")


@cli.command("evaluate")
@_RUN
@BEST
@LAST
@_ROOT
@_CODE
def evaluate_(run_path: Path, best: bool, last: bool, root: Path | None, allow_code: bool) -> None:
    """Evaluate a run's student on the test split."""
    from dskd.cli.results import evaluation_rows
    from dskd.deploy.student import evaluate

    evaluation = evaluate(run_path, which_weights(best, last), root=root, allow_code=allow_code)
    console.table(["", "value"], evaluation_rows(evaluation))


@cli.command("predict")
@_RUN
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@BEST
@LAST
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, help="Classes per image."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "jsonl"]),
    help="Format of the predictions.  [default: by the suffix of --out, else table]",
)
@click.option("--out", type=PATH, help="File to write.  [default: standard output]")
@_CODE
def predict_(
    run_path: Path,
    images: tuple[str, ...],
    best: bool,
    last: bool,
    top: int,
    form: str | None,
    out: Path | None,
    allow_code: bool,
) -> None:
    """Predict the classes of image files with a run's student.

    IMAGE is a file, a folder with all folders in it, or a pattern in quotes such as
    'photos/**/*.jpg'. Files that cannot be used are skipped and reported on standard error; the
    exit code is 0 if at least one image was predicted, else 2. Example:

        dskd predict runs/digits/dskd-seed0 photos --out classes.csv
    """
    from dskd.cli.results import prediction_cells
    from dskd.deploy import prediction_file
    from dskd.deploy.predict import Skipped, predict_batches
    from dskd.deploy.student import load_deployed

    chosen = prediction_file.choose_format(form, out)
    student = load_deployed(run_path, which_weights(best, last), allow_code=allow_code)
    skipped, shown = Skipped(), min(top, len(student.classes))
    rows = prediction_file.rows(predict_batches(student, images, skipped), student.classes, shown)
    if chosen is None:
        console.table(["image", "class", "probability, %"], prediction_cells(rows))
    else:
        prediction_file.write_rows(rows, chosen, shown, out)
    for line in skipped.lines():
        click.echo(line, err=True)


@cli.command("export")
@_RUN
@click.option("--format", "form", type=click.Choice(["onnx"]), default="onnx", show_default=True)
@click.option(
    "--output",
    type=PATH,
    help="File to write.  [default: RUN/student.onnx; RUN/student_best.onnx with --best; "
    "RUN/student_ema.onnx for averaged weights]",
)
@BEST
@LAST
@_CODE
def export_(
    run_path: Path, form: str, output: Path | None, best: bool, last: bool, allow_code: bool
) -> None:
    """Export a run's student to ONNX, for other programs to run."""
    from dskd.deploy.onnx import export_onnx
    from dskd.deploy.student import chosen_weights, load_deployed, onnx_name

    which = which_weights(best, last) or chosen_weights(run_path)
    student = load_deployed(run_path, which, allow_code=allow_code)
    path = output or run_path / onnx_name(which)
    difference = export_onnx(student, path)
    click.echo(f"{path}  (largest relative difference from the student: {difference:.1e})")


@cli.command("report")
@click.argument("paths", metavar="RUN...|COMPARISON", nargs=-1, required=True, type=PATH)
@click.option(
    "--output",
    type=PATH,
    default=Path("report.html"),
    show_default=True,
    help="HTML page to write.",
)
@_ROOT
@_CODE
def report_(paths: tuple[Path, ...], output: Path, root: Path | None, allow_code: bool) -> None:
    """Report on finished runs or a comparison as one HTML page.

    The page works offline. Files with the same numbers as .csv, .json and .tex are written next to
    it. Example:

        dskd report runs/compare/digits
    """
    from dskd.engine.build import UserObjects
    from dskd.report.build import make_report

    click.echo(make_report(paths, output, root=root, given=UserObjects(allow_code=allow_code)))


@cli.command("list")
@click.argument("what", type=click.Choice(tuple(listing.LISTS)))
def list_(what: str) -> None:
    """List models, methods, recipes or data sets."""
    console.table(*listing.LISTS[what]())


@cli.command("demo")
@click.option(
    "--out", type=PATH, default=Path("runs/demo"), show_default=True, help="Folder of the runs."
)
def demo_(out: Path) -> None:
    """Distil a small network on handwritten digits, in under a minute.

    A teacher is trained first, then one student without a teacher, one with KD and one with DSKD.
    """
    from dskd.cli import demo

    try:
        path, columns, rows = demo.run_demo(out)
    except Stopped as stopped:
        sys.exit(say("stopped; a demo starts anew", 128 + stopped.signal))
    console.table(columns, rows)
    click.echo(demo.NOTE)
    click.echo(f"runs saved in {path}")


def _print_result(result: Result) -> None:
    from dskd.cli.results import result_rows

    if launch.is_rank_zero():
        console.table(["", "value"], result_rows(result))
        click.echo(f"run saved in {result.path}")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with the code of `dskd.cli.exit_codes`.

    Args:
        arguments: Of the command line. None takes those of the program.
    """
    open_streams()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("dskd").setLevel(logging.INFO if launch.is_rank_zero() else logging.ERROR)
    sys.exit(run_command(arguments))


def run_command(arguments: list[str] | None) -> int:
    """Runs a command and returns its exit code."""
    return exit_code(lambda: cli.main(arguments, prog_name="dskd", standalone_mode=False))
