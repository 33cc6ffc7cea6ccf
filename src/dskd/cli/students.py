"""Commands for trained students: ``evaluate``, ``predict``, ``export`` and ``report``."""

from __future__ import annotations

from pathlib import Path

import click

from dskd.cli import console
from dskd.cli.arguments import ALLOW_CODE, BEST, LAST, PATH, which_weights
from dskd.deploy import formats

_ROOT = click.option("--root", type=PATH, help="Folder of the data set's files.")
_RUN = click.argument("run_path", metavar="RUN", type=PATH)


@click.command("evaluate")
@_RUN
@BEST
@LAST
@_ROOT
@ALLOW_CODE
def evaluate_(run_path: Path, best: bool, last: bool, root: Path | None, allow_code: bool) -> None:
    """Evaluate a run's student on the test split."""
    from dskd.cli.results import evaluation_rows
    from dskd.deploy.evaluate import evaluate

    evaluation = evaluate(run_path, which_weights(best, last), root=root, allow_code=allow_code)
    console.table(["", "value"], evaluation_rows(evaluation))


@click.command("predict")
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
@ALLOW_CODE
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


@click.command("export")
@_RUN
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
    help="Images of a call.  [default: dynamic, that is any number]",
)
@click.option("--int8", is_flag=True, help="Quantize weights and activations to 8-bit integers.")
@click.option(
    "--calibration-images",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Images of the training split that choose the ranges of the integers.",
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
    help="Largest allowed difference of the outputs, relative to the largest one.  "
    "[default: 0.0001, or 0.5 with --int8]",
)
@_ROOT
@BEST
@LAST
@ALLOW_CODE
def export_(
    run_path: Path,
    form: str | None,
    out: Path | None,
    batch: str | None,
    int8: bool,
    calibration_images: int,
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
    says what it expects and how it is called. Example:

        dskd export runs/digits/dskd-seed0 --format onnx
    """
    from dskd.cli.results import export_rows
    from dskd.deploy.ship import ShipOptions, ship
    from dskd.deploy.student import load_deployed

    student = load_deployed(run_path, which_weights(best, last), allow_code=allow_code)
    options = ShipOptions(
        form, out, batch, tolerance, measure, license, root, int8, calibration_images
    )
    found = ship(student, options, allow_code=allow_code)
    click.echo(
        f"{found.path}  (largest relative difference from the student: {found.difference:.1e})"
    )
    if measure:
        columns, rows = export_rows(found)
        console.table(columns, rows)
    for what, why in found.measured.missing.items():
        click.echo(f"{what} not measured: {why}", err=True)


@click.command("report")
@click.argument("paths", metavar="RUN...|COMPARISON", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    type=PATH,
    help="HTML page to write.  [default: report.html in the folder of the run or comparison, or in "
    "the one that holds all runs]",
)
@_ROOT
@ALLOW_CODE
def report_(paths: tuple[Path, ...], out: Path | None, root: Path | None, allow_code: bool) -> None:
    """Report on finished runs or a comparison as one HTML page.

    The page works offline. Files with the same numbers as .csv, .json and .tex are written next to
    it. A report of the same runs is replaced, and no other file is. Example:

        dskd report runs/compare/digits
    """
    from dskd.engine.user_objects import UserObjects
    from dskd.report.build import make_report

    for path in make_report(paths, out, root=root, given=UserObjects(allow_code=allow_code)):
        click.echo(path)
