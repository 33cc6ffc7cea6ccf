"""The program ``dskd``: its commands, and how it exits.

A command reads its arguments, calls the package and prints what it returns. Commands import torch
only when they run, so that ``dskd --help`` answers at once.
"""

from __future__ import annotations

import logging
import sys

import click

from dskd.cli import check, graphs, overview, segment, students, training, tuning
from dskd.cli.exit_codes import exit_code, open_streams
from dskd.errors import on_command_line
from dskd.runtime import launch
from dskd.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="dskd")
@click.pass_context
def cli(context: click.Context) -> None:
    """Make a vision model small: knowledge distillation with deep supervision."""
    context.with_resource(on_command_line())
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    training.train_,
    training.distill_,
    check.check_,
    training.compare_,
    tuning.tune_,
    training.init_,
    students.evaluate_,
    students.predict_,
    students.export_,
    students.report_,
    overview.list_,
    overview.stages_,
    overview.demo_,
    graphs.graphs_,
    segment.segment_,
):
    cli.add_command(command)


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
