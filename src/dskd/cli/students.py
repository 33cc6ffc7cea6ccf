"""Commands for trained students: ``evaluate``, ``predict``, ``export`` and ``report``."""

from __future__ import annotations

from pathlib import Path

import click

from dskd.cli import console
from dskd.cli.arguments import ALLOW_CODE, BEST, LAST, PATH, which_weights

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
    from dskd.deploy.student import evaluate

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
@click.option("--format", "form", type=click.Choice(["onnx"]), default="onnx", show_default=True)
@click.option(
    "--output",
    type=PATH,
    help="File to write.  [default: RUN/student.onnx; RUN/student_best.onnx with --best; "
    "RUN/student_ema.onnx for averaged weights]",
)
@BEST
@LAST
@ALLOW_CODE
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


@click.command("report")
@click.argument("paths", metavar="RUN...|COMPARISON", nargs=-1, required=True, type=PATH)
@click.option(
    "--output",
    type=PATH,
    default=Path("report.html"),
    show_default=True,
    help="HTML page to write.",
)
@_ROOT
@ALLOW_CODE
def report_(paths: tuple[Path, ...], output: Path, root: Path | None, allow_code: bool) -> None:
    """Report on finished runs or a comparison as one HTML page.

    The page works offline. Files with the same numbers as .csv, .json and .tex are written next to
    it. Example:

        dskd report runs/compare/digits
    """
    from dskd.engine.user_objects import UserObjects
    from dskd.report.build import make_report

    click.echo(make_report(paths, output, root=root, given=UserObjects(allow_code=allow_code)))
