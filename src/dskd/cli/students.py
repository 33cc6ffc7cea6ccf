"""Commands for trained students: ``evaluate``, ``predict``, ``export`` and ``report``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dskd.cli import console
from dskd.cli.arguments import ALLOW_CODE, BEST, LAST, PATH, ROOT, which_weights
from dskd.cli.reporting import takes_reported_runs, write_report
from dskd.deploy import formats
from dskd.errors import InputError, printable
from dskd.settings import MAX_LOSS

_RUN = click.argument("run_path", metavar="RUN", type=PATH)


def _takes_exits(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command ``max_loss``: None for the plain student."""

    @functools.wraps(command)
    def wrapped(exits: bool, max_loss: float | None, **options: Any) -> None:
        command(max_loss=largest_loss(exits, max_loss), **options)

    loss = click.option(
        "--max-loss",
        type=click.FloatRange(0),
        help="Largest accepted drop in validation accuracy by --exits, in percentage points."
        f"  [default: {MAX_LOSS:g}]",
    )
    return click.option("--exits", is_flag=True, help="Predict at the run's early exits.")(
        loss(wrapped)
    )


def largest_loss(exits: bool, max_loss: float | None) -> float | None:
    """The loss of accuracy that the flags allow early exits; None for the plain student.

    Raises:
        InputError: A loss is allowed without ``--exits``.

    Example:
        >>> largest_loss(True, None), largest_loss(True, 1.0), largest_loss(False, None)
        (0.5, 1.0, None)
    """
    if max_loss is not None and not exits:
        raise InputError("--max-loss chooses among early exits; add --exits")
    return None if not exits else MAX_LOSS if max_loss is None else max_loss


@click.command("evaluate")
@_RUN
@_takes_exits
@click.option("--json", "as_json", is_flag=True, help="Print all numbers as JSON.")
@BEST
@LAST
@ROOT
@ALLOW_CODE
def evaluate_(
    run_path: Path,
    max_loss: float | None,
    as_json: bool,
    best: bool,
    last: bool,
    root: Path | None,
    allow_code: bool,
) -> None:
    """Evaluate a run's student on the test split.

    With --exits, the table shows accuracy against mean multiply-adds and the latency of one image,
    for several accepted drops in accuracy.
    """
    from dskd.cli import results
    from dskd.deploy.early_exits import evaluate_exits
    from dskd.deploy.evaluate import evaluate

    which = which_weights(best, last)
    if max_loss is None:
        found = evaluate(run_path, which, root=root, allow_code=allow_code)
        columns, rows = ["", "value"], results.evaluation_rows(found)
        numbers = results.evaluation_numbers(found)
    else:
        exits = evaluate_exits(run_path, which, max_loss, root=root, allow_code=allow_code)
        columns, rows = results.exit_rows(exits)
        numbers = asdict(exits)
    if as_json:
        click.echo(json.dumps(numbers, indent=2))
    else:
        console.table(columns, rows)


@click.command("predict")
@_RUN
@_takes_exits
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
@ALLOW_CODE
def predict_(
    run_path: Path,
    images: tuple[str, ...],
    max_loss: float | None,
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
    from dskd.cli.results import prediction_cells, predictions_line
    from dskd.deploy import prediction_file
    from dskd.deploy.early_exits import load_early
    from dskd.deploy.predict import CountedExits, Skipped, predict_batches
    from dskd.deploy.student import load_deployed

    chosen, which = prediction_file.choose_format(form, out), which_weights(best, last)
    exits = None
    if max_loss is None:
        student = load_deployed(run_path, which, allow_code=allow_code)
    else:
        exits = CountedExits(load_early(run_path, which, max_loss, allow_code=allow_code))
        student = exits.early.deployed
    skipped, shown = Skipped(), min(top, len(student.classes))
    found = predict_batches(student, images, skipped, exits)
    rows = prediction_file.rows(found, student.classes, shown)
    if chosen is None:
        console.table(["image", "class", "probability, %"], prediction_cells(rows))
    else:
        count = prediction_file.write_rows(rows, chosen, shown, out)
        if out is not None:
            click.echo(predictions_line(count, "image", out))
    for line in [*skipped.lines(), *(exits.lines() if exits else ())]:
        click.echo(line, err=True)


@click.command("export")
@_RUN
@_takes_exits
@click.option(
    "--format",
    "form",
    type=click.Choice(formats.names()),
    help="Format of the file.  [default: by the suffix of --out, else onnx]",
)
@click.option(
    "--out",
    type=PATH,
    help="File to write.  [default: in RUN/export, named student, student_best with --best or "
    "student_ema for averaged weights]",
)
@click.option(
    "--batch",
    metavar="N|dynamic",
    help="Images in one call of the file.  [default: dynamic, that is any number]",
)
@click.option("--int8", is_flag=True, help="Quantize weights and activations to 8-bit integers.")
@click.option(
    "--qat",
    type=click.IntRange(1),
    help="Epochs of quantization-aware training before --int8 quantizes.",
)
@click.option(
    "--qat-lr",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate of --qat.  [default: a hundredth of that of the run]",
)
@click.option(
    "--calibration-images",
    type=click.IntRange(1),
    help="With --int8: training images that calibrate the ranges of the integers.  [default: 256]",
)
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="Measure accuracy on the test split, and latency next to the teacher's.",
)
@click.option("--license", help="Licence of the weights for the card, as in apache-2.0.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    help="Largest difference allowed between the outputs of the file and those of the student, "
    "divided by the largest absolute output.  [default: 0.0001, or 0.5 with --int8]",
)
@ROOT
@BEST
@LAST
@ALLOW_CODE
def export_(
    run_path: Path,
    max_loss: float | None,
    form: str | None,
    out: Path | None,
    batch: str | None,
    int8: bool,
    qat: int | None,
    qat_lr: float | None,
    calibration_images: int | None,
    measure: bool,
    license: str | None,
    tolerance: float | None,
    root: Path | None,
    best: bool,
    last: bool,
    allow_code: bool,
) -> None:
    """Export a run's student to a file that other programs run.

    The outputs of the file are compared with those of the student. A model card next to the file
    describes its inputs and how to run it. Example:

        dskd export runs/digits/dskd-seed0 --format onnx
    """
    from dskd.cli.results import export_rows
    from dskd.deploy.ship import ShipOptions, ship
    from dskd.deploy.student import load_deployed

    which = which_weights(best, last) or (None if max_loss is None else "last")
    student = load_deployed(run_path, which, allow_code=allow_code)
    options = ShipOptions(
        form,
        out,
        batch,
        tolerance,
        measure,
        license,
        root,
        int8,
        calibration_images,
        max_loss,
        qat,
        qat_lr,
    )
    found = ship(student, options, allow_code=allow_code)
    path = printable(str(found.path))
    click.echo(f"{path}  (largest relative difference from the student: {found.difference:.1e})")
    if measure:
        columns, rows = export_rows(found)
        console.table(columns, rows)
    click.echo(f"model card: {printable(str(found.card))}")
    if found.measured.busy:
        click.echo(f"latency: {found.measured.busy}", err=True)
    for what, why in found.measured.missing.items():
        click.echo(f"{what} not measured: {why}", err=True)


@click.command("report")
@takes_reported_runs
@click.option(
    "--beside",
    metavar="RUN",
    multiple=True,
    type=PATH,
    help="Run of another student on the same images, to show beside early exits. Repeatable.",
)
@ALLOW_CODE
def report_(
    paths: tuple[Path, ...],
    out: Path | None,
    root: Path | None,
    beside: tuple[Path, ...],
    allow_code: bool,
) -> None:
    """Report on finished runs or a comparison as one HTML page.

    The page works offline. Files with the same numbers as .csv, .json and .tex are written next to
    it. An earlier report of the same runs is replaced. No other file is. Example:

        dskd report runs/compare/digits
    """
    from dskd.engine.user_objects import UserObjects

    given = UserObjects(allow_code=allow_code)
    write_report(paths, out, root=root, given=given, beside=beside)
