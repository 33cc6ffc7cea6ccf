"""The commands of ``dskd graphs``: train, distill, compare, evaluate, predict, report and demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dskd.cli import console
from dskd.cli.arguments import BEST, PATH, RESUME
from dskd.cli.comparing import compare_methods
from dskd.cli.reporting import takes_reported_runs, write_report
from dskd.cli.task_recipe import run_task, takes_seeds, takes_task_recipe
from dskd.cli.training import OVERWRITE
from dskd.errors import InputError

_FLAGS = {
    "data": click.option("--data", metavar="DATA", help="An .npz file, or the name of a data set."),
    "student": click.option(
        "--student", metavar="MODEL", help="The model to train: gcn, gat or sage."
    ),
    "teacher": click.option("--teacher", metavar="MODEL", help="The model to learn from."),
    "method": click.option(
        "--method",
        metavar="METHOD",
        help="alone, alignment, alignahead, alignahead++ or dskd.",
    ),
    "epochs": click.option(
        "--epochs",
        type=click.IntRange(1),
        help="Epochs of each student and, unless teacher.epochs is set, of the teacher.",
    ),
    "out": click.option("--out", type=PATH, help="Folder of the run."),
}
_KEYS = {
    "student": "student.name",
    "teacher": "teacher.name",
    "method": "method.name",
    "epochs": "train.epochs",
    "out": "out",
}
_RUN = click.argument("run_path", metavar="RUN", type=PATH)
_STUDENT = click.option(
    "--number",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Which of several students that learned online.",
)


@click.group("graphs", invoke_without_command=True)
@click.pass_context
def graphs_(context: click.Context) -> None:
    """Classify the nodes of graphs.

    Students learn online from each other (Alignahead), or from a teacher (DSKD). Shipped recipes:
    cora, generated and ppi. PyTorch Geometric is needed: pip install 'dskd[graphs]'.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _data_settings(given: str) -> list[str]:
    from dskd.engine.tasks.graphs.recipe import data_settings

    return data_settings(given)


_takes_recipe = takes_task_recipe(_FLAGS, _KEYS, _data_settings)


def _run(recipe_name: str | None, overrides: list[str], **how: bool) -> None:
    from dskd.engine.tasks.graphs.job import GraphJob
    from dskd.engine.tasks.graphs.recipe import RECIPES

    run_task(RECIPES, GraphJob, recipe_name, overrides, **how)


@graphs_.command("train")
@_takes_recipe("data", "student", "epochs", "out")
@RESUME
@OVERWRITE
def train_(recipe_name: str | None, overrides: list[str], resume: bool, overwrite: bool) -> None:
    """Train one student on the labels alone.

    RECIPE is cora, generated, ppi or a YAML file. Example:

        dskd graphs train --data graph.npz --student gcn
    """
    _run(recipe_name, overrides, resume=resume, overwrite=overwrite, alone=True)


@graphs_.command("distill")
@_takes_recipe("data", "teacher", "student", "method", "epochs", "out")
@RESUME
@OVERWRITE
def distill_(recipe_name: str | None, overrides: list[str], resume: bool, overwrite: bool) -> None:
    """Train students that learn from each other, or one that learns from a teacher.

    RECIPE is cora, generated, ppi or a YAML file. A teacher without a checkpoint is trained
    first. Example:

        dskd graphs distill --data graph.npz --student gcn --method alignahead
    """
    _run(recipe_name, overrides, resume=resume, overwrite=overwrite)


@graphs_.command("compare")
@_takes_recipe("data", "teacher", "student", "epochs")
@click.option(
    "--methods",
    "names",
    multiple=True,
    default=["alone,alignment,alignahead,alignahead++"],
    show_default=True,
    help="Names, separated by commas; 'all'; or with settings, as in alignahead:weight=2. "
    "Repeatable.",
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

    All students of a seed start from the same weights. The table shows the first student of each
    run. Finished runs stay: the same command continues a comparison, and more methods or seeds
    extend it. --jobs N trains in N processes, with the same results. Example:

        dskd graphs compare generated --methods alone,alignahead,dskd --seeds 5
    """
    from dskd.engine.tasks.graphs.recipe import RECIPES

    plan = RECIPES.load_shared(recipe_name, overrides)
    folder = out or Path("runs/compare") / f"graphs-{Path(recipe_name or 'own').stem}"
    compare_methods(plan, names, seeds, folder, **where)


@graphs_.command("demo")
@click.option(
    "--out", type=PATH, default=Path("runs/demo-graphs"), show_default=True, help="Folder."
)
@click.option(
    "--epochs", type=click.IntRange(1), default=50, show_default=True, help="Epochs of a student."
)
def demo_(out: Path, epochs: int) -> None:
    """Compare all methods on a small graph, in about a minute.

    The graph is Cora, which is downloaded once. Without a network it is a random graph.
    """
    from dskd.engine.tasks.graphs.recipe import RECIPES
    from dskd.engine.tasks.graphs.sources import load_graphs

    changes = [f"train.epochs={epochs}"]
    plan = RECIPES.load_shared("cora", changes)
    try:
        load_graphs(plan.split_data)
    except InputError as error:
        click.echo(f"taking a random graph: {error}", err=True)
        plan = RECIPES.load_shared("generated", changes)
    compare_methods(plan, ["all"], 2, out)


@graphs_.command("evaluate")
@_RUN
@_STUDENT
@BEST
def evaluate_(run_path: Path, number: int, best: bool) -> None:
    """Evaluate a run's student on the test split."""
    from dskd.cli.results import evaluation_rows
    from dskd.engine.tasks.graphs.student import evaluate

    found = evaluate(run_path, "best" if best else "last", number)
    console.table(["", "value"], evaluation_rows(found))


@graphs_.command("predict")
@_RUN
@click.argument("graph", metavar="[GRAPH.npz]", type=PATH, required=False)
@_STUDENT
@BEST
@click.option(
    "--top", type=click.IntRange(1), default=1, show_default=True, help="Classes per node."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "jsonl"]),
    help="Format of the predictions.  [default: by the suffix of --out, else table]",
)
@click.option("--out", type=PATH, help="File to write.  [default: standard output]")
def predict_(
    run_path: Path,
    graph: Path | None,
    number: int,
    best: bool,
    top: int,
    form: str | None,
    out: Path | None,
) -> None:
    """Predict the classes of all nodes of a graph with a run's student.

    GRAPH.npz has features and edges. Without it, the run's own graph is taken, or the graphs of its
    test split. Example:

        dskd graphs predict runs/graphs/generated/alignahead-seed0 --out classes.csv
    """
    from dskd.cli.results import prediction_cells, predictions_line
    from dskd.deploy import prediction_file
    from dskd.engine.tasks.graphs.student import load_student, predict

    chosen = prediction_file.choose_format(form, out)
    student = load_student(run_path, "best" if best else "last", number)
    shown = min(top, len(student.classes))
    rows = predict(student, graph, shown)
    if chosen is None:
        console.table(["node", "class", "probability, %"], prediction_cells(rows))
    else:
        count = prediction_file.write_rows(rows, chosen, shown, out, "node")
        if out is not None:
            click.echo(predictions_line(count, "node", out))


@graphs_.command("report")
@takes_reported_runs
def report_(paths: tuple[Path, ...], out: Path | None, root: Path | None) -> None:
    """Report on finished runs or a comparison as one HTML page.

    It has the curves, the table with intervals, and the errors by class. Files with
    the same numbers as .csv, .json and .tex are written next to it. Example:

        dskd graphs report runs/compare/graphs-generated
    """
    write_report(paths, out, root=root, task="graphs")
