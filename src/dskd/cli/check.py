"""The command ``check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dskd.cli import console
from dskd.cli.arguments import ALLOW_CODE, takes_recipe
from dskd.cli.exit_codes import say
from dskd.config import recipe
from dskd.errors import InputError, printable
from dskd.storage.paths import as_path

if TYPE_CHECKING:
    from dskd.engine.check.findings import CheckReport


@click.command("check")
@takes_recipe("data", "teacher", "student", "method", "epochs", "out", "exits")
@click.option(
    "--json", "json_file", metavar="FILE", help="Write the findings as JSON; - prints them."
)
@ALLOW_CODE
def check_(
    recipe_name: str | None, overrides: list[str], json_file: str | None, allow_code: bool
) -> None:
    """Check a run of `dskd distill` before it starts.

    It shows the data, the accuracy of the teacher, the stages, the loss terms and their gradients,
    the loss over a few steps, the speed, and the time, memory and disk space that the run needs. If
    the run should not be started, it prints the reasons and exits with code 1. KEY=VALUE changes a
    setting, as in train.epochs=10. Example:

        dskd check digits
    """
    from dskd.engine.check.run import check
    from dskd.engine.user_objects import UserObjects

    file = None if json_file in (None, "-") else as_path(json_file, "json")
    if file is not None and not file.parent.is_dir():
        raise InputError(f"there is no folder {file.parent}; create it first")
    plan = recipe.load_for_a_run(recipe_name, overrides)
    report = check(plan, UserObjects(allow_code=allow_code))
    text = json.dumps(report.plain(), indent=2, allow_nan=False)
    if json_file == "-":
        click.echo(text)
    else:
        _print(report)
        if file is not None:
            _write(file, text)
            click.echo(f"findings written to {printable(str(file))}")
    for reason in report.reasons:
        say(reason, 1)
    if not report.ok:
        sys.exit(1)


def _write(path: Path, text: str) -> None:
    from dskd.storage.atomic import replace_file

    replace_file(path, f"{text}\n".encode())


def _print(report: CheckReport) -> None:
    """Prints the page, without the reasons against the run."""
    from dskd.cli.check_page import tables

    for columns, rows in tables(report):
        console.table(columns, rows)
        click.echo()
    for warning in report.warnings:
        click.echo(f"warning: {printable(warning)}")
    if report.ok:
        click.echo(f"the run can be started (checked in {report.seconds:.0f} s)")
