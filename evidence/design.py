"""What a study compares: read from studies.yaml, with what it takes from the studies before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from dskd import methods
from dskd.compare.variants import method_variants
from dskd.config.recipe import load
from dskd.errors import InputError, unknown
from dskd.settings import Count, Settings, validate
from dskd.storage.yaml_file import read_yaml_file
from evidence.choose import LEADING, RIVALS, baselines, best, leading, trials_of

HERE = Path(__file__).parent
RECIPE = str(HERE / "resnet8.yaml")
_OWN = ("teacher.name", "teacher.epochs", "teacher.checkpoint", "data.root")


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
    same: dict[str, str] = Field(default_factory=dict)
    """Labels that are left out, each with the one whose settings it has."""

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

    @property
    def most(self) -> int:
        """Seeds that a label may have."""
        return self.further.seeds if self.further else self.seeds

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
    same = doubles([label for labels in groups.values() for label in labels], study.recipe)
    groups = {group: [one for one in labels if one not in same] for group, labels in groups.items()}
    return study.model_copy(update={"groups": groups, "same": same})


def doubles(labels: Sequence[str], recipe: str) -> dict[str, str]:
    """Labels that have all the settings of one before them, and which that is.

    Example:
        >>> doubles(["kd", "kd:temperature=4", "kd:temperature=2"], RECIPE)
        {'kd:temperature=4': 'kd'}
    """
    first: dict[str, str] = {}
    same = {}
    given = load(recipe, ["data.root=."])
    for variant in method_variants(dict.fromkeys(labels), given, "equal"):
        known = first.setdefault(variant.method.model_dump_json(), variant.label)
        if known != variant.label:
            same[variant.label] = known
    return same


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
    """Labels, with what ``all`` and those in <> stand for."""
    return [one for label in labels for one in _expanded(label, out)]


def _expanded(label: str, out: Path) -> list[str]:
    if label == "all":
        return methods.names()
    if label == "<baselines>":
        return baselines(out / "table")
    if label == "<trials of kd>":
        return trials_of("kd")
    if label == "<trials of baselines>":
        return [trial for name in baselines(out / "table") for trial in trials_of(name)]
    if label in ("<leading trials>", "<best>"):
        trials = find("trials", out)
        chosen = best if label == "<best>" else leading
        return chosen(trials.folder(out), trials.labels)
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
    tried = 2 + RIVALS  # kd and dskd are, too
    several = {"<baselines>": RIVALS, "<leading trials>": tried * LEADING}
    more = sum(several.get(label, 1) for label in further.labels)
    return study.seeds * len(study.labels) + (further.seeds - study.seeds) * more
