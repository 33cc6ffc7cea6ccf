"""A study: ``python -m evidence.study NAME DATA OUT [KEY=VALUE...]``.

NAME is one of studies.yaml, DATA holds ``tiny-imagenet-200/``, OUT the pictures, the teachers and
the runs. What is finished in OUT stays, so that the same call goes on. The results are written to
``docs/results/NAME.json`` and drawn as ``docs/results/NAME.md`` after every seed. With KEY=VALUE
for the recipe it is no longer the protocol's study, and its page says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from dskd import device, methods, run
from dskd.compare import grid
from dskd.compare.folder import Comparison
from dskd.compare.live import live_table
from dskd.compare.summary import Entry, Summary, summarize
from dskd.errors import InputError, unknown
from dskd.finite import NotFinite
from dskd.interrupt import Stopped
from dskd.recipe import load
from dskd.settings import Count, Settings, validate
from dskd.yaml_text import read_yaml_file
from evidence import figure
from evidence.choose import LEADING, best, leading, rivals, trials_of
from evidence.expect import seconds_of
from evidence.page import OURS, page
from evidence.prepare import prepare

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs/results"
RECIPE = str(HERE / "resnet8.yaml")
_OWN = ("teacher.name", "teacher.epochs", "teacher.checkpoint", "data.root")
MACHINE = ("python", "packages", "processor", "cores", "threads", "device")


class TrainedTeacher(Settings):
    """A teacher, trained by labels."""

    name: str | None = None
    """None for the recipe's."""
    epochs: Count
    """Of its training."""


class Further(Settings):
    """More seeds for some of a study's methods, once all have theirs."""

    seeds: Count
    labels: list[str]


class Study(Settings):
    """What is compared."""

    name: str
    """Of the study, and of its page."""
    title: str
    """Of its page."""
    teacher: TrainedTeacher
    """The same for all."""
    baseline: str
    """The label that all others are compared with."""
    seeds: Count
    """0, 1, ..."""
    groups: dict[str, list[str]]
    """Labels by what they vary."""
    set: str | None = None
    """The set of the protocol; None for DATA as it is."""
    recipe: str = RECIPE
    """What is the same for all."""
    further: Further | None = None
    """Who gets more seeds."""
    into: str | None = None
    """The study among whose runs its own lie, so that what both have is computed once."""
    beside: str | None = None
    """What it does otherwise than the protocol; None where that is nothing."""
    asks_first: bool = False
    """Whether its page says if DSKD is better than the best of the others."""
    changes: list[str] = Field(default_factory=list)
    """Of the recipe."""
    called: str | None = None
    """By this name, with another recipe; None for its own."""

    @property
    def teacher_name(self) -> str:
        """As given, or the recipe's."""
        teacher = load(self.recipe).teacher
        assert teacher is not None, "a study's recipe has a teacher"
        return self.teacher.name or teacher.name

    @property
    def labels(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys(label for labels in self.groups.values() for label in labels))

    def folder(self, out: Path) -> Path:
        """Of its runs."""
        return out / (self.into or self.name)


def find(name: str, out: Path) -> Study:
    """A study by its name.

    Args:
        name: One of studies.yaml.
        out: Where the studies lie that it takes labels from.

    Raises:
        InputError: There is none of this name, or one that it builds on is not finished.

    Example:
        >>> find("table", Path()).baseline
        'kd'
    """
    known = read_yaml_file(HERE / "studies.yaml", "studies")
    if name not in known:
        raise unknown("study", name, known)
    study = validate(Study, {"name": name, **known[name]}, f"{name}.")
    groups = {group: expanded(labels, out) for group, labels in study.groups.items()}
    return study.model_copy(update={"groups": groups})


def varied(study: Study, recipe: str | None, changes: Sequence[str]) -> Study:
    """A study with another recipe, or with changes of its own.

    Args:
        study: As `find` gives it.
        recipe: Of another pair, which gets a page of its own; None for the study's.
        changes: ``key=value``.

    Raises:
        InputError: One of them is not to be changed.
    """
    for change in changes:
        key = change.partition("=")[0]
        if key in _OWN:
            raise InputError(f"{key} is the study's own; give another recipe with --recipe")
    update: dict[str, Any] = {"changes": list(changes)}
    if recipe is not None:
        if study.set is not None:
            raise InputError(f"the recipe of {study.name} is the protocol's; drop --recipe")
        name = f"{study.name}-{Path(recipe).stem}"
        update |= {"recipe": recipe, "name": name, "called": study.name}
    return study.model_copy(update=update)


def expanded(labels: Sequence[str], out: Path) -> list[str]:
    """Labels, with what ``all``, ``<rivals>``, ``<trials>`` and ``<best>`` stand for."""
    return [one for label in labels for one in _expanded(label, out)]


def _expanded(label: str, out: Path) -> list[str]:
    if label == "all":
        return methods.names()
    if label == "<rivals>":
        return rivals(out / "table")
    if label == "<trials of kd>":
        return trials_of("kd")
    if label == "<trials of rivals>":
        return [trial for name in rivals(out / "table") for trial in trials_of(name)]
    if label in ("<leading trials>", "<best>"):
        trials = find("trials", out)
        chosen = best if label == "<best>" else leading
        return chosen(trials.folder(out), trials.labels, study="trials")
    return [label]


def stints(study: Study, out: Path) -> Iterator[tuple[list[str], int]]:
    """Which labels are to have how many seeds, one seed more at a time."""
    for seeds in range(1, study.seeds + 1):
        yield study.labels, seeds
    if study.further is not None:
        labels = expanded(study.further.labels, out)
        for seeds in range(study.seeds + 1, study.further.seeds + 1):
            yield labels, seeds


def wanted(study: Study) -> int:
    """How many runs it has when it is finished."""
    further = study.further
    if further is None:
        return study.seeds * len(study.labels)
    several = {"<rivals>": 2, "<leading trials>": 4 * LEADING}
    more = sum(several.get(label, 1) for label in further.labels)
    return study.seeds * len(study.labels) + (further.seeds - study.seeds) * more


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


def facts_of(
    study: Study, comparison: Comparison, teacher: Mapping[str, Any], commit: str
) -> dict[str, Any]:
    """What is kept of a study: everything that its page is drawn from."""
    entries = [entry for entry in comparison.entries if entry.label in study.labels]
    summaries = summarize(entries, comparison.pictures, baseline=study.baseline)
    return {
        "study": study.name,
        "title": study.title,
        "command": command_of(study),
        "commit": commit,
        "date": date.today().isoformat(),
        "environment": machine(device.pick("auto")),
        "set": study.set,
        "beside": study.beside,
        "changes": study.changes,
        "pictures": comparison.pictures,
        "teacher": {"name": study.teacher_name, "epochs": study.teacher.epochs}
        | {key: teacher[key] for key in ("accuracy", "parameters")},
        "baseline": study.baseline,
        "runs": wanted(study),
        "recipe": _without_places(comparison.facts["recipe"]),
        "groups": study.groups,
        "rows": {s.label: _row(s, f"{comparison.path.parent}/") for s in summaries},
        "first": _first(entries, comparison.pictures) if study.asks_first else None,
    }


def machine(where: torch.device) -> dict[str, Any]:
    """What numbers depend on beside the recipe; no place of the machine."""
    told = device.environment(where)
    return {key: told[key] for key in MACHINE}


def command_of(study: Study) -> str:
    """What computes it.

    Example:
        >>> command_of(find("table", Path()))
        'python -m evidence.study table DATA OUT'
    """
    recipe = ["--recipe", study.recipe] if study.called else []
    words = ["python -m evidence.study", study.called or study.name, "DATA OUT"]
    return " ".join([*words, *recipe, *study.changes])


def _first(entries: Sequence[Entry], pictures: int) -> dict[str, Any] | None:
    """DSKD's best row against the best of the others, among those with the most seeds.

    None where one of the two is not there.
    """
    most = max(len(entry.results) for entry in entries)
    entries = [entry for entry in entries if len(entry.results) == most]
    means = {s.label: s.last.mean for s in summarize(entries, pictures) if s.last}
    own = [label for label in means if label.partition(":")[0] == OURS]
    others = [label for label in means if label not in own]
    if not own or not others:
        return None
    ours, second = max(own, key=means.__getitem__), max(others, key=means.__getitem__)
    rows = {s.label: s for s in summarize(entries, pictures, baseline=ours)}
    gap = rows[second].difference
    if gap is None:
        return None
    return {
        "label": ours,
        "mean": means[ours],
        "second": second,
        "second_mean": means[second],
        "gap": -gap.interval.mean,
        "gap_half": gap.interval.half,
        "p_holm": gap.p_holm,
        "seeds": len(gap.interval.values),
    }


def _row(summary: Summary, out: str) -> dict[str, Any]:
    """A label's numbers, plain; where a failed run lies is told from OUT."""
    gap = summary.difference
    return {
        "weights": dict(summary.weights),
        "seeds": list(summary.seeds),
        "failed": {seed: why.replace(out, "OUT/") for seed, why in summary.failed.items()},
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


def _without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    kept = json.loads(json.dumps(recipe))
    for part, key in (("data", "root"), ("data", "cache"), ("teacher", "checkpoint")):
        kept[part].pop(key, None)
    return dict(kept)


def commit_of_code() -> str:
    """Marked where files differ from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


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
        InputError: Pictures or studies that it needs are not there.
        Stopped: A signal asked for a stop; the same call goes on.
    """
    commit = commit_of_code()  # before the pages change the files
    for labels, seeds in stints(study, out):
        comparison, teacher = compare(study, labels, seeds, data, out)
        write(facts_of(study, comparison, teacher, commit), results)


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
    except NotFinite as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped.signal)


if __name__ == "__main__":
    main()
