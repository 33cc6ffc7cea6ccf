"""Computes a study: ``python -m evidence.study NAME DATA OUT [KEY=VALUE...]``.

NAME is a study of studies.yaml. DATA holds ``tiny-imagenet-200/``. OUT takes the splits, the
teachers and the runs. The same command continues a study that was stopped. After every seed and at
a stop, the results are written to ``docs/results/NAME.json`` and drawn as ``docs/results/NAME.md``.
If KEY=VALUE changes the recipe, the study departs from the protocol, and its page says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dskd.compare import grid, runner
from dskd.compare.jobs import launcher_for
from dskd.compare.progress import live_table
from dskd.compare.reader import is_lost, read_comparison
from dskd.config.recipe import load
from dskd.engine import run
from dskd.errors import InputError, Stopped
from dskd.storage.run_files import LOST
from evidence import figure, strong_teacher
from evidence.design import Study, find, steps, varied
from evidence.exits import exit_codes
from evidence.facts import commit_of_code, facts_of
from evidence.fitting import without_misfits
from evidence.page import page, shows_costs
from evidence.prepare import prepare
from evidence.time_estimate import training_seconds

RESULTS = Path(__file__).parents[1] / "docs/results"
"""The default folder of the pages."""


def teacher_of(study: Study, root: Path, out: Path) -> Path:
    """The weights of the study's teacher. Trains it, and one it starts from, if not finished.

    Args:
        study: The study.
        root: The folder of the images.
        out: The folder of all studies.
    """
    name, epochs, strong = study.teacher_name, study.teacher.epochs, study.teacher.strong
    trained = "-".join([name, str(epochs), *(["strong"] if strong else []), *study.changes])
    images = study.split or study.shares_runs_of or study.name
    folder = out / "teachers" / images / trained
    if strong:
        strong_teacher.train(root, folder, name, epochs, seed=0)
    elif not (folder / "result.json").is_file():
        own = [f"student.name={name}", f"train.epochs={epochs}", f"data.root={root}"]
        if study.teacher.starts_from is not None:
            earlier = teacher_of(find(study.teacher.starts_from, out), root, out)
            own.append(f"student.checkpoint={earlier}")
        run.train(load(study.recipe, [*study.changes, *own, f"out={folder}"]), resume=True)
    return folder / "student.safetensors"


def grid_of(
    study: Study, labels: Sequence[str], seeds: int, root: Path, checkpoint: Path, out: Path
) -> grid.Grid:
    """Some runs of a study.

    Args:
        study: The study.
        labels: The labels to train.
        seeds: Number of seeds of each label.
        root: The folder of the images.
        checkpoint: The weights of the teacher.
        out: The folder of all studies.
    """
    changes = [f"teacher.name={study.teacher_name}", f"teacher.checkpoint={checkpoint}"]
    overrides = [*changes, f"data.root={root}", *study.changes]
    teacher = load(study.recipe, overrides).teacher
    assert teacher is not None, "a study's recipe has a teacher"
    return grid.load_plan(
        study.recipe,
        overrides,
        labels,
        study.folder(out),
        seeds=seeds,
        # With a cache, students end one after the other, so that few are lost with a machine.
        share_teacher=teacher.cache == "none",
    )


def train(plan: grid.Grid, jobs: int) -> None:
    """Trains the missing runs.

    Args:
        plan: The runs.
        jobs: Number of processes that train students.

    Raises:
        InputError: A process was lost with its run. A study without it would choose among fewer.
    """
    with live_table(plan) as callback:
        launcher = launcher_for(plan, plan.runs, jobs, "processes", {})
        runner.run_grid(plan, callback, launcher=launcher)
    for variant in plan.variants:
        for seed in plan.seeds:
            folder = plan.folder(variant, seed)
            if is_lost(folder):
                raise InputError(f"a run was lost, as {folder / LOST} says; start the study again")


def write(facts: Mapping[str, Any], results: Path = RESULTS) -> None:
    """Writes the JSON, the figure and the page of a study.

    Args:
        facts: The results.
        results: The folder to write to.
    """
    name = facts["study"]
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (results / f"{name}.svg").write_bytes(figure.means(facts))
    if shows_costs(facts):
        (results / f"{name}-cost.svg").write_bytes(figure.costs(facts))
    (results / f"{name}.md").write_text(page(facts))


def compute(study: Study, data: Path, out: Path, results: Path = RESULTS, jobs: int = 1) -> None:
    """Computes the missing runs of a study, and writes its page after every seed and at a stop.

    Args:
        study: A study that `find` returned.
        data: The folder that holds ``tiny-imagenet-200/``, or the folder that the recipe reads.
        out: The folder of all studies.
        results: The folder of the pages.
        jobs: Number of processes that train students.

    Raises:
        InputError: Images or earlier studies are missing.
        Stopped: A signal stopped the run. The same call continues it.
    """
    commit = commit_of_code()  # first: writing the pages changes files of the checkout
    root = prepare(data, study.split, out / "splits") if study.split else data.resolve()
    checkpoint = teacher_of(study, root, out)
    teacher = json.loads((checkpoint.parent / "result.json").read_text())
    if study.leaves_misfits_out:
        study = without_misfits(study, grid_of(study, study.labels, 1, root, checkpoint, out))
    computed: dict[str, int] = {}

    def write_page() -> None:
        comparison = read_comparison(study.folder(out))
        write(facts_of(study, computed, comparison, teacher, commit), results)

    for labels, seeds in steps(study, out):
        computed |= dict.fromkeys(labels, seeds)
        try:
            train(grid_of(study, labels, seeds, root, checkpoint, out), jobs)
        except Stopped:
            write_page()
            raise
        write_page()


def check_gpu(study: Study, data: Path) -> None:
    """Refuses a long study on a machine without a GPU.

    Args:
        study: The study.
        data: The folder of the images.

    Raises:
        InputError: There is no GPU. The message says how long this CPU would take.
    """
    if torch.cuda.is_available():
        return
    own = [f"teacher.name={study.teacher_name}", f"teacher.epochs={study.teacher.epochs}"]
    recipe = load(study.recipe, [*study.changes, *own, f"data.root={data.resolve()}"])
    hours = training_seconds(recipe, study.labels, study.seeds) / 3600
    raise InputError(
        f"torch finds no GPU here, and the study {study.name} would train for about "
        f"{hours / 24:.1f} days on this CPU; use a machine with a GPU, or add --anyway"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes the missing runs of a study.

    Args:
        arguments: The command line; None for that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--recipe", help="another pair, for a study without a split")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the pages")
    parser.add_argument(
        "--anyway", action="store_true", help="train without a GPU, however long it takes"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that train students")
    chosen = parser.parse_intermixed_args(arguments)
    with exit_codes():
        study = varied(find(chosen.name, chosen.out), chosen.recipe, chosen.changes)
        if study.split is None and not chosen.anyway:
            check_gpu(study, chosen.data)
        compute(study, chosen.data, chosen.out, chosen.results, chosen.jobs)


if __name__ == "__main__":
    main()
