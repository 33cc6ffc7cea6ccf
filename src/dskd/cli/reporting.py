"""What the commands that write reports have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from dskd.cli.arguments import PATH, ROOT

_RUNS = click.argument("paths", metavar="RUN...|COMPARISON", nargs=-1, required=True, type=PATH)
_OUT = click.option(
    "--out",
    type=PATH,
    help="HTML page to write.  [default: report.html in the folder of the run or comparison, or in "
    "the one that holds all runs]",
)


def takes_reported_runs(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the runs to report on, the page to write, and the folder of their data."""
    return _RUNS(_OUT(ROOT(command)))


def write_report(paths: Sequence[Path], out: Path | None, **options: Any) -> None:
    """Writes the report of finished runs, and prints its files.

    Args:
        paths: The folders of runs, or the folder of one comparison.
        out: The HTML page.
        options: Further arguments of `dskd.report.build.make_report`.
    """
    from dskd.report.build import make_report

    for path in make_report(paths, out, **options):
        click.echo(path)
