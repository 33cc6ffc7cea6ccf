"""A study: ``python -m evidence.study NAME DATA OUT [KEY=VALUE...]``.

NAME is one of studies.yaml, DATA holds ``tiny-imagenet-200/``, OUT the images, the teachers and
the runs. What is finished in OUT stays, so that the same call goes on. The results are written to
``docs/results/NAME.json`` and drawn as ``docs/results/NAME.md`` after every seed. With KEY=VALUE
for the recipe it is no longer the protocol's study, and its page says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dskd.compare import grid
from dskd.compare.progress import live_table
from dskd.compare.reader import Comparison
from dskd.config.recipe import load
from dskd.engine import run
from dskd.errors import InputError, NonFiniteError, Stopped
from evidence import figure
from evidence.design import Study, find, stints, varied
from evidence.expect import seconds_of
from evidence.facts import commit_of_code, facts_of
from evidence.page import page
from evidence.prepare import prepare

RESULTS = Path(__file__).parents[1] / "docs/results"
"""Where pages are written, unless elsewhere."""


def teacher_of(study: Study, root: Path, out: Path) -> Path:
    """The weights of the study's teacher, trained unless they are there."""
    name, epochs = study.teacher_name, study.teacher.epochs
    trained = "-".join([name, str(epochs), *study.changes])
    place = out / "teachers" / (study.set or study.name) / trained
    if not (place / "result.json").is_file():
        own = [f"student.name={name}", f"train.epochs={epochs}", f"data.root={root}"]
        run.train(load(study.recipe, [*study.changes, *own, f"out={place}"]), resume=True)
    return place / "student.safetensors"


def compare(
    study: Study, labels: Sequence[str], seeds: int, data: Path, out: Path
) -> tuple[Comparison, dict[str, Any]]:
    """Trains what is not there, of so many seeds; also what the teacher came to."""
    root = prepare(data, study.set, out / "sets") if study.set else data.resolve()
    checkpoint = teacher_of(study, root, out)
    changes = [f"teacher.name={study.teacher_name}", f"teacher.checkpoint={checkpoint}"]
    plan = grid.load_plan(
        study.recipe,
        [*changes, f"data.root={root}", *study.changes],
        labels,
        study.folder(out),
        seeds=seeds,
    )
    with live_table(plan) as watcher:
        comparison = grid.run_grid(plan, watcher)
    return comparison, json.loads((checkpoint.parent / "result.json").read_text())


def write(facts: Mapping[str, Any], results: Path = RESULTS) -> None:
    """Writes the numbers, their figure, and the page of both."""
    name = facts["study"]
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (results / f"{name}.svg").write_bytes(figure.means(facts))
    (results / f"{name}.md").write_text(page(facts))


def compute(study: Study, data: Path, out: Path, results: Path = RESULTS) -> None:
    """Computes what is left of a study, and writes after every seed.

    Args:
        study: As `find` gives it.
        data: The folder that holds ``tiny-imagenet-200/``, or what the study's recipe reads.
        out: For everything that is computed.
        results: For the numbers and the page.

    Raises:
        InputError: Images or studies that it needs are not there.
        Stopped: A signal asked for a stop; the same call goes on.
    """
    commit = commit_of_code()  # before the pages change the files
    wanted: dict[str, int] = {}
    for labels, seeds in stints(study, out):
        wanted |= dict.fromkeys(labels, seeds)
        comparison, teacher = compare(study, labels, seeds, data, out)
        write(facts_of(study, wanted, comparison, teacher, commit), results)


def check_gpu(study: Study, data: Path) -> None:
    """Refuses a long study where there is no GPU.

    Raises:
        InputError: There is none; it says how long this CPU would take.
    """
    if torch.cuda.is_available():
        return
    own = [f"teacher.name={study.teacher_name}", f"teacher.epochs={study.teacher.epochs}"]
    recipe = load(study.recipe, [*study.changes, *own, f"data.root={data.resolve()}"])
    hours = seconds_of(recipe, study.labels, study.seeds) / 3600
    raise InputError(
        f"torch sees no GPU here, and the study {study.name} would train for about "
        f"{hours / 24:.1f} days on this CPU; run it where there is one, or add --anyway"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes what is left of a study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--recipe", help="another pair for a study that is not the protocol's")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the page is written")
    parser.add_argument("--anyway", action="store_true", help="without a GPU, however long")
    chosen = parser.parse_intermixed_args(arguments)
    try:
        study = varied(find(chosen.name, chosen.out), chosen.recipe, chosen.changes)
        if study.set is None and not chosen.anyway:
            check_gpu(study, chosen.data)
        compute(study, chosen.data, chosen.out, chosen.results)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped.signal)


if __name__ == "__main__":
    main()
