"""Commands to look around: ``list`` and ``demo``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dskd.cli import console, listing
from dskd.cli.arguments import PATH
from dskd.cli.exit_codes import say
from dskd.errors import Stopped


@click.command("list")
@click.argument("what", type=click.Choice(tuple(listing.LISTS)))
def list_(what: str) -> None:
    """List models, methods, recipes or data sets."""
    console.table(*listing.LISTS[what]())


@click.command("demo")
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
