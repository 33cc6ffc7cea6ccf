"""Commands to look around: ``list``, ``stages`` and ``demo``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dskd.cli import console, listing
from dskd.cli.arguments import ALLOW_CODE, PATH
from dskd.cli.exit_codes import say
from dskd.errors import Stopped


@click.command("list")
@click.argument("what", type=click.Choice(tuple(listing.LISTS)))
def list_(what: str) -> None:
    """List models, methods, recipes or data sets."""
    console.table(*listing.LISTS[what]())


@click.command("stages")
@click.argument("model", metavar="MODEL")
@click.option(
    "--size",
    type=click.IntRange(1),
    help="Height and width of the images.  [default: those the model was published for, or 32]",
)
@click.option(
    "--channels", type=click.IntRange(1), default=3, show_default=True, help="Channels of an image."
)
@click.option(
    "--classes", type=click.IntRange(2), default=10, show_default=True, help="Number of classes."
)
@click.option("--all", "every", is_flag=True, help="List all submodules that can be stages.")
@ALLOW_CODE
def stages_(
    model: str, size: int | None, channels: int, classes: int, every: bool, allow_code: bool
) -> None:
    """Show the stages that a run would choose for a model.

    The table has the last submodule of each stage, the shape of its map, the share of the layers up
    to its end (the depth), and its share of the multiply-adds. Example:

        dskd stages timm/resnet18 --size 64
    """
    from dskd.models import stage_table

    rows = stage_table.stages(
        model, size=size, channels=channels, classes=classes, all=every, allow_code=allow_code
    )
    console.table(stage_table.COLUMNS, [row.cells() for row in rows])


@click.command("demo")
@click.option(
    "--out", type=PATH, default=Path("runs/demo"), show_default=True, help="Folder of the runs."
)
def demo_(out: Path) -> None:
    """Train a teacher and three students on digits, in about a minute.

    The data are handwritten digits. The teacher is trained first, then one student without a
    teacher, one with KD and one with DSKD.
    """
    from dskd.cli import demo

    try:
        path, columns, rows = demo.run_demo(out)
    except Stopped as stopped:
        sys.exit(say("stopped; a demo starts anew", 128 + stopped.signal))
    console.table(columns, rows)
    click.echo(demo.NOTE)
    click.echo(f"runs saved in {path}")
