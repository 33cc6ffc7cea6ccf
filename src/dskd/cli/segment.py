"""The commands of ``dskd segment``: train, distill, compare, evaluate, predict, report and demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dskd.cli import console
from dskd.cli.arguments import PATH, RESUME
from dskd.cli.comparing import compare_methods
from dskd.cli.reporting import takes_reported_runs, write_report
from dskd.cli.task_recipe import run_task, takes_seeds, takes_task_recipe
from dskd.cli.training import OVERWRITE

_FLAGS = {
    "data": click.option(
        "--data", metavar="DATA", help="A folder with img and mask, or shapes for generated ones."
    ),
    "width": click.option(
        "--width", type=click.IntRange(1), help="Channels of the first stage of the U-Net."
    ),
    "method": click.option("--method", metavar="METHOD", help="masks, seeds, mixed, kd or dskd."),
    "epochs": click.option(
        "--epochs",
        type=click.IntRange(1),
        help="Epochs of the student and, unless teacher.epochs is set, of the teacher.",
    ),
    "out": click.option("--out", type=PATH, help="Folder of the run."),
}
_KEYS = {
    "width": "student.width",
    "method": "method.name",
    "epochs": "train.epochs",
    "out": "out",
}
_RUN = click.argument("run_path", metavar="RUN", type=PATH)
_LAST = click.option("--last", is_flag=True, help="Use the weights of the last epoch.")


@click.group("segment", invoke_without_command=True)
@click.pass_context
def segment_(context: click.Context) -> None:
    """Train networks for segmentation, also with few masks.

    A U-Net learns from masks, from seeds (a few pixels of each object), or from both; a small one
    learns from a large one. Shipped recipes: cardiac and shapes. MONAI is needed:
    pip install 'dskd[segmentation]'.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _data_settings(given: str) -> list[str]:
    from dskd.engine.tasks.segmentation.recipe import data_settings

    return data_settings(given)


_takes_recipe = takes_task_recipe(_FLAGS, _KEYS, _data_settings)


def _run(recipe_name: str | None, overrides: list[str], **how: bool) -> None:
    from dskd.engine.tasks.segmentation.job import SegmentationJob
    from dskd.engine.tasks.segmentation.recipe import RECIPES

    run_task(RECIPES, SegmentationJob, recipe_name, overrides, **how)


@segment_.command("train")
@_takes_recipe("data", "width", "epochs", "out")
@RESUME
@OVERWRITE
def train_(recipe_name: str | None, overrides: list[str], resume: bool, overwrite: bool) -> None:
    """Train a network on the masks alone.

    RECIPE is cardiac, shapes or a YAML file. Example:

        dskd segment train --data scans/ --width 16
    """
    _run(recipe_name, overrides, resume=resume, overwrite=overwrite, alone=True)


@segment_.command("distill")
@_takes_recipe("data", "width", "method", "epochs", "out")
@RESUME
@OVERWRITE
def distill_(recipe_name: str | None, overrides: list[str], resume: bool, overwrite: bool) -> None:
    """Train with masks and seeds (one decoder teaches another), or from a large teacher.

    RECIPE is cardiac, shapes or a YAML file. A teacher without a checkpoint is trained first. This
    example has masks for three patients:

        dskd segment distill --data scans/ data.patients=3 data.size=128
    """
    _run(recipe_name, overrides, resume=resume, overwrite=overwrite)


@segment_.command("compare")
@_takes_recipe("data", "width", "epochs")
@click.option(
    "--methods",
    "names",
    multiple=True,
    default=["masks,mixed"],
    show_default=True,
    help="Names, separated by commas; 'all'; or with settings, as in mixed:kl=0. Repeatable.",
)
@takes_seeds
def compare_(
    recipe_name: str | None,
    overrides: list[str],
    names: tuple[str, ...],
    seeds: int,
    out: Path | None,
    **where: Any,
) -> None:
    """Compare methods over several seeds.

    All students see the same images in the same steps. Finished runs stay: the same command
    continues a comparison, and more methods or seeds extend it. --jobs N trains in N
    processes, with the same results. Example:

        dskd segment compare shapes --methods masks,mixed,mixed:kl=0 --seeds 5
    """
    from dskd.engine.tasks.segmentation.recipe import RECIPES

    plan = RECIPES.load_shared(recipe_name, overrides)
    folder = out or Path("runs/compare") / f"segment-{Path(recipe_name or 'own').stem}"
    compare_methods(plan, names, seeds, folder, **where)


@segment_.command("demo")
@click.option("--data", default="shapes", show_default=True, help="A folder with img and mask.")
@click.option(
    "--out",
    type=PATH,
    default=Path("runs/demo-segment"),
    show_default=True,
    help="Folder of the runs.",
)
def demo_(data: str, out: Path) -> None:
    """Train three students in a minute, and draw their predictions.

    They learn from few masks, from few masks and many seeds, and from all masks.
    """
    from dskd.cli import segment_demo

    path, columns, rows = segment_demo.run_demo(out, data)
    console.table(columns, rows)
    click.echo(segment_demo.NOTE)
    click.echo(f"predictions drawn in {path}: the mask, then one column for each student")


@segment_.command("evaluate")
@_RUN
@_LAST
def evaluate_(run_path: Path, last: bool) -> None:
    """Measure Dice and HD95 of a run's student on the test split.

    The student is that of the best epoch by validation Dice, unless --last is given.
    """
    from dskd.cli.results import class_score_rows
    from dskd.engine.tasks.segmentation.student import evaluate

    scores = evaluate(run_path, "last" if last else "best")
    console.table(
        ["class", "Dice, %", "HD95, pixels", "images with HD95"], class_score_rows(scores)
    )


@segment_.command("predict")
@_RUN
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@_LAST
@click.option("--out", type=PATH, help="Folder for the masks.  [default: RUN/predictions]")
def predict_(run_path: Path, images: tuple[str, ...], last: bool, out: Path | None) -> None:
    """Predict the masks of image files, and draw them over the images.

    IMAGE is a file, a folder with all folders in it, or a pattern in quotes. NAME_mask.png has the
    number of the class in each pixel, 0 for the background; NAME_overlay.png is to look at. Files
    that cannot be used are skipped and reported on standard error; the exit code is 0 if at least
    one mask was predicted, else 2. Example:

        dskd segment predict runs/segment/shapes/mixed-seed0 scans/img
    """
    from dskd.deploy.predict import Skipped
    from dskd.deploy.predict_masks import predict_masks
    from dskd.engine.tasks.segmentation.student import load_student

    student = load_student(run_path, "last" if last else "best")
    folder, skipped = out or run_path / "predictions", Skipped()
    rows = [
        [path, *(f"{share:.2f}" for share in shares.values())]
        for path, shares in predict_masks(student, images, folder, skipped)
    ]
    console.table(["image", *(f"{name}, % of pixels" for name in student.classes[1:])], rows)
    for line in skipped.lines():
        click.echo(line, err=True)
    click.echo(f"masks and overlays are in {folder}")


@segment_.command("report")
@takes_reported_runs
def report_(paths: tuple[Path, ...], out: Path | None, root: Path | None) -> None:
    """Report on finished runs or a comparison as one HTML page.

    It has the curves, the table with intervals, and predictions drawn over images. Files with
    the same numbers as .csv, .json and .tex are written next to it. Example:

        dskd segment report runs/compare/segment-shapes
    """
    write_report(paths, out, root=root, task="segment")
