"""A study of the protocol: ``python -m evidence.study NAME DATA OUT``.

NAME is one of studies.yaml, DATA holds ``tiny-imagenet-200/``, OUT the pictures, the teachers and
the runs. What is finished in OUT stays, so that the same call goes on. The results are written to
``docs/results/NAME.json`` and drawn as ``docs/results/NAME.md`` after every seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dskd import device, run
from dskd.compare import grid
from dskd.compare.entries import Comparison
from dskd.compare.live import live_table
from dskd.compare.summary import Summary, summarize
from dskd.errors import InputError, unknown
from dskd.interrupt import Stopped
from dskd.recipe import load
from dskd.yaml_text import read_yaml_file
from evidence.page import page
from evidence.prepare import prepare

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs/results"
RECIPE = str(HERE / "resnet8.yaml")
_MACHINE = ("python", "packages", "processor", "cores", "threads", "device")


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        name: Of the study.
        title: Of its page.
        pictures: The set of the protocol.
        teacher: The teacher's name.
        teacher_epochs: Of its own training.
        baseline: The label that all others are compared with.
        seeds: How many.
        groups: Labels by what they vary.
        changes: Of the recipe.
    """

    name: str
    title: str
    pictures: str
    teacher: str
    teacher_epochs: int
    baseline: str
    seeds: int
    groups: Mapping[str, Sequence[str]]
    changes: Sequence[str]

    @property
    def labels(self) -> list[str]:
        """All of them."""
        return [label for labels in self.groups.values() for label in labels]


def find(name: str) -> Study:
    """A study by its name.

    Raises:
        InputError: There is none of this name.

    Example:
        >>> find("table").baseline
        'kd'
    """
    known = read_yaml_file(HERE / "studies.yaml", "studies")
    if name not in known:
        raise unknown("study", name, known)
    facts = known[name]
    return Study(
        name,
        facts["title"],
        facts["set"],
        facts["teacher"]["name"],
        facts["teacher"]["epochs"],
        facts["baseline"],
        facts["seeds"],
        facts["groups"],
        [f"train.epochs={facts['epochs']}"] if "epochs" in facts else [],
    )


def teacher_of(study: Study, root: Path, out: Path) -> Path:
    """The weights of the study's teacher, trained unless they are there."""
    place = out / "teachers" / study.pictures / f"{study.teacher}-{study.teacher_epochs}"
    if not (place / "result.json").is_file():
        changes = [f"student.name={study.teacher}", f"train.epochs={study.teacher_epochs}"]
        recipe = load(RECIPE, [*changes, f"data.root={root}", f"out={place}"])
        run.train(recipe, resume=True)
    return place / "student.safetensors"


def compare(study: Study, data: Path, out: Path, seeds: int) -> tuple[Comparison, dict[str, Any]]:
    """Trains what is not there, of so many seeds; also what the teacher came to."""
    root = prepare(data, study.pictures, out / "sets")
    checkpoint = teacher_of(study, root, out)
    place = out / study.name
    changes = [f"teacher.name={study.teacher}", f"teacher.checkpoint={checkpoint}"]
    plan = grid.load_plan(
        RECIPE,
        [*changes, f"data.root={root}", *study.changes],
        study.labels,
        place,
        seeds=seeds,
    )
    with live_table(plan) as watcher:
        comparison = grid.run_grid(plan, watcher)
    return comparison, json.loads((checkpoint.parent / "result.json").read_text())


def facts_of(study: Study, comparison: Comparison, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a study: everything that its page is drawn from."""
    summaries = summarize(comparison.entries, comparison.pictures, baseline=study.baseline)
    return {
        "study": study.name,
        "title": study.title,
        "command": f"python -m evidence.study {study.name} DATA OUT",
        "commit": _commit(),
        "date": date.today().isoformat(),
        "environment": {k: device.environment(torch.device("cpu"))[k] for k in _MACHINE},
        "set": study.pictures,
        "pictures": comparison.pictures,
        "teacher": {"name": study.teacher, "epochs": study.teacher_epochs}
        | {key: teacher[key] for key in ("accuracy", "parameters")},
        "baseline": study.baseline,
        "seeds": study.seeds,
        "recipe": _without_places(comparison.facts["recipe"]),
        "groups": {name: _expanded(labels, summaries) for name, labels in study.groups.items()},
        "rows": {summary.label: _row(summary) for summary in summaries},
    }


def _row(summary: Summary) -> dict[str, Any]:
    """A label's numbers, plain."""
    gap = summary.difference
    return {
        "weights": dict(summary.weights),
        "seeds": list(summary.seeds),
        "failed": dict(summary.failed),
        "accuracies": list(summary.last.values) if summary.last else [],
        "mean": summary.last.mean if summary.last else None,
        "half": summary.last.half if summary.last else None,
        "best": summary.best.mean if summary.best else None,
        "agreement": summary.agreement.mean if summary.agreement else None,
        "sampling_error": summary.sampling_error,
        "gap": gap.interval.mean if gap else None,
        "gap_half": gap.interval.half if gap else None,
        "p": gap.p if gap else None,
        "p_holm": gap.p_holm if gap else None,
        "parameters": summary.parameters,
        "extra_parameters": summary.extra_parameters,
    }


def _expanded(labels: Sequence[str], summaries: Sequence[Summary]) -> list[str]:
    return [s.label for s in summaries] if list(labels) == ["all"] else list(labels)


def _without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    kept = json.loads(json.dumps(recipe))
    for part, key in (("data", "root"), ("data", "cache"), ("teacher", "checkpoint")):
        kept[part].pop(key, None)
    return dict(kept)


def _commit() -> str:
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write(facts: Mapping[str, Any], results: Path = RESULTS) -> None:
    """Writes the numbers, and the page of them."""
    name = facts["study"]
    (results / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (results / f"{name}.md").write_text(page(facts))


def main() -> None:
    """Computes what is left of a study; writes after every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    try:
        study = find(chosen.name)
        for seeds in range(1, study.seeds + 1):
            write(facts_of(study, *compare(study, chosen.data, chosen.out, seeds)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped.signal)


if __name__ == "__main__":
    main()
