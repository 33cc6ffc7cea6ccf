"""The command line: one function a verb, no logic."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, get_args

import click
import torch

from dskd.cli import console, demo, listing
from dskd.compare import grid, progress, table
from dskd.compare.summary import summarize
from dskd.compare.variants import Weights
from dskd.config import recipe
from dskd.deploy import onnx as export
from dskd.deploy import student as deployed
from dskd.engine import run
from dskd.engine.build import UserObjects
from dskd.engine.training_run import Result
from dskd.errors import InputError, NonFiniteError, ProcessLost, Stopped, printable
from dskd.runtime import distributed
from dskd.version import __version__

_PATH = click.Path(path_type=Path)
_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_RESUME = click.option("--resume", is_flag=True, help="Continue an interrupted run.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the run that is there.")
_CODE = click.option("--allow-code", is_flag=True, help="Let package.module:function models run.")
_BEST = click.option("--best", is_flag=True, help="The weights of the best epoch, not the last.")
_RUN = click.argument("run_path", metavar="RUN", type=_PATH)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="dskd")
@click.pass_context
def cli(context: click.Context) -> None:
    """Make a vision model small: knowledge distillation with deep supervision."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("train")
@click.argument("recipe_name", metavar="RECIPE")
@_OVERRIDES
@_RESUME
@_OVERWRITE
@_CODE
def train_(
    recipe_name: str, overrides: tuple[str, ...], resume: bool, overwrite: bool, allow_code: bool
) -> None:
    """Train the recipe's student by labels alone.

    RECIPE is a name of `dskd list recipes` or a YAML file. Example:

        dskd train digits train.epochs=5
    """
    plan = recipe.load_by_labels(recipe_name, overrides)
    given = UserObjects(allow_code=allow_code)
    _print_result(run.train(plan, resume=resume, overwrite=overwrite, given=given))


@cli.command("distill")
@click.argument("recipe_name", metavar="RECIPE")
@_OVERRIDES
@_RESUME
@_OVERWRITE
@_CODE
def distill_(
    recipe_name: str, overrides: tuple[str, ...], resume: bool, overwrite: bool, allow_code: bool
) -> None:
    """Distil the recipe's student from its teacher, which is trained first if need be.

    RECIPE is a name of `dskd list recipes` or a YAML file. Example:

        dskd distill digits method.name=kd seed=1
    """
    plan = recipe.load(recipe_name, overrides)
    given = UserObjects(allow_code=allow_code)
    _print_result(run.distill(plan, resume=resume, overwrite=overwrite, given=given))


@cli.command("compare")
@click.argument("recipe_name", metavar="RECIPE")
@_OVERRIDES
@click.option(
    "--methods",
    "names",
    multiple=True,
    default=["ce,kd,dskd"],
    show_default=True,
    help="Names, 'all', or with settings: dskd:beta=0.1. Parted by commas; may be repeated.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="How many.")
@click.option(
    "--weights",
    type=click.Choice(get_args(Weights)),
    default="equal",
    show_default=True,
    help="equal: ce = kd = 1 for all; literature: what each method was published with.",
)
@click.option("--out", type=_PATH, help="By default runs/compare/RECIPE.")
@click.option(
    "--share/--no-share",
    default=True,
    show_default=True,
    help="One answer of the teacher for all students of a seed.",
)
@_CODE
def compare_(
    recipe_name: str,
    overrides: tuple[str, ...],
    names: tuple[str, ...],
    seeds: int,
    weights: Weights,
    out: Path | None,
    share: bool,
    allow_code: bool,
) -> None:
    """Distil by several methods at several seeds, under the same images in the same order.

    What is finished stays; the same command again continues, and more methods or seeds are added.

    Example:
        dskd compare digits --methods ce,kd,dskd --seeds 5
    """
    plan = grid.load_plan(
        recipe_name, overrides, names, out, seeds=seeds, weights=weights, share=share
    )
    with progress.live_table(plan) as watcher:
        comparison = grid.run_grid(plan, watcher, UserObjects(allow_code=allow_code))
    summaries = summarize(comparison.entries, comparison.test_images)
    console.table(*table.summary_table(summaries))
    for line in table.notes(comparison, summaries):
        click.echo(line)


@cli.command("evaluate")
@_RUN
@_BEST
@click.option("--root", type=_PATH, help="Where the data set lies.")
@_CODE
def evaluate_(run_path: Path, best: bool, root: Path | None, allow_code: bool) -> None:
    """Judge a run's student on the test split of its data set."""
    evaluation = deployed.evaluate(
        run_path, "best" if best else "last", root=root, allow_code=allow_code
    )
    rows = [
        ["accuracy", f"{evaluation.accuracy:.2f}"],
        ["top-5", f"{evaluation.accuracy_top5:.2f}"],
    ]
    console.table(["", "test split, %"], rows)


@cli.command("predict")
@_RUN
@click.argument("images", metavar="PICTURE...", nargs=-1, required=True, type=_PATH)
@_BEST
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes shown.")
@_CODE
def predict_(
    run_path: Path, images: tuple[Path, ...], best: bool, top: int, allow_code: bool
) -> None:
    """Name what a run's student sees in image files."""
    student = deployed.load_deployed(run_path, "best" if best else "last", allow_code=allow_code)
    console.table(["image", "class", "probability, %"], listing.predictions(student, images, top))


@cli.command("export")
@_RUN
@click.option(
    "--format", "form", type=click.Choice(export.FORMATS), default="onnx", show_default=True
)
@click.option("--output", type=_PATH, help="By default RUN/student.onnx, or RUN/student_best.onnx.")
@_BEST
@_CODE
def export_(run_path: Path, form: str, output: Path | None, best: bool, allow_code: bool) -> None:
    """Write a run's student in a form that other programs run."""
    student = deployed.load_deployed(run_path, "best" if best else "last", allow_code=allow_code)
    path = output or run_path / f"{'student_best' if best else 'student'}.{form}"
    difference = export.export_onnx(student, path)
    click.echo(f"{path}  (largest relative difference from the student: {difference:.1e})")


@cli.command("report")
@click.argument("paths", metavar="RUN...|COMPARISON", nargs=-1, required=True, type=_PATH)
@click.option(
    "--output", type=_PATH, default=Path("report.html"), show_default=True, help="The page."
)
@click.option("--root", type=_PATH, help="Where the data set lies.")
@_CODE
def report_(paths: tuple[Path, ...], output: Path, root: Path | None, allow_code: bool) -> None:
    """Draw finished runs, or a comparison, as one page that opens from disk.

    The same numbers are written beside it as .csv, .json and .tex. Example:

        dskd report runs/compare/digits
    """
    from dskd.report.build import make_report  # the charts' library is large, and only used here

    click.echo(make_report(paths, output, root=root, given=UserObjects(allow_code=allow_code)))


@cli.command("list")
@click.argument("what", type=click.Choice(tuple(listing.LISTS)))
def list_(what: str) -> None:
    """Show what there is: models, methods, recipes, data sets."""
    console.table(*listing.LISTS[what]())


@cli.command("demo")
@click.option("--out", type=_PATH, default=Path("runs/demo"), show_default=True)
def demo_(out: Path) -> None:
    """Train a teacher on handwritten digits, then a student alone, by KD and by DSKD."""
    try:
        path, columns, rows = demo.run_demo(out)
    except Stopped as stopped:
        sys.exit(_say("stopped; a demo starts anew", 128 + stopped.signal))
    console.table(columns, rows)
    click.echo(demo.NOTE)
    click.echo(f"runs kept in {path}")


def _print_result(result: Result) -> None:
    if distributed.is_rank_zero():
        console.table(["", "value"], listing.result_rows(result))
        click.echo(f"run kept in {result.path}")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits.

    With 2 for bad input, 3 for NaN, 4 where another process of the run is lost, 130 or 143 when
    stopped, else 0.

    Args:
        arguments: Of the command line; None for the program's own.
    """
    _open_streams()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("dskd").setLevel(
        logging.INFO if distributed.is_rank_zero() else logging.ERROR
    )
    sys.exit(_exit_code(arguments))


def _open_streams() -> None:
    """Has streams that are closed lead nowhere: a file opened next would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (for good)


def _exit_code(arguments: list[str] | None) -> int:
    try:
        outcome: Any = cli.main(arguments, prog_name="dskd", standalone_mode=False)
        sys.stdout.flush()
    except Stopped as stopped:
        return _say(stopped.message, 128 + stopped.signal)
    except (click.Abort, KeyboardInterrupt):
        return _say("stopped", 128 + signal.SIGINT)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "dskd"
        message = error.format_message().rstrip(".")
        join = " " if message.endswith(("?", ")")) else "; "
        return _say(f"{message}{join}see `{command} --help`", 2)
    except (click.ClickException, InputError) as error:
        return _say(str(error), 2)
    except BrokenPipeError:  # the reader of a list has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, or a folder that is not ours to write to
        where = f"cannot read or write {error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", 2, own=True)
    except torch.OutOfMemoryError:
        text = "the GPU has too little memory for this run; lower train.batch_size"
        return _say(text, 2, own=True)
    except ProcessLost as error:
        return _say(str(error), 4, own=True)
    except NonFiniteError as error:
        return _say(str(error), 3)
    return outcome if isinstance(outcome, int) else 0


def _say(message: str, code: int, *, own: bool = False) -> int:
    """Says how it ended: once a machine where all processes end so, else each its own end."""
    if own or distributed.local_rank() == 0:
        who = (
            f"dskd, process {distributed.launched_rank()}"
            if own and distributed.launched_world_size() > 1
            else "dskd"
        )
        print(f"{who}: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code
