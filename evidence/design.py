"""What a study compares: studies.yaml, completed by the results of earlier studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from dskd.compare.variants import method_variants
from dskd.config.recipe import load
from dskd.errors import InputError, unknown
from dskd.settings import Count, Settings, validate
from dskd.storage.yaml_file import read_yaml_file
from evidence import first
from evidence.choose import BASELINES, LEADING, TABLE, baselines, best, configurations_of, leading
from evidence.opening import SEEDS_OF_FIRST

HERE = Path(__file__).parent
RECIPE = str(HERE / "resnet8.yaml")
FIRST: dict[str, Callable[[Path], list[str]]] = {
    "<all methods>": lambda out: [*first.METHODS],
    "<drawn configurations>": first.searched,
    "<leading four>": first.leading,
    "<chosen configurations>": first.chosen,
    "<chosen dskd>": lambda out: [first.chosen_dskd(out)],
    "<parts of dskd>": first.parts,
}
"""The placeholders of the study "DSKD first", each with what it stands for."""
_FIXED_SETTINGS = ("teacher.name", "teacher.epochs", "teacher.checkpoint", "data.root")


class TrainedTeacher(Settings):
    """A teacher that is trained by labels."""

    name: str | None = None
    """The model; None for the teacher of the recipe."""
    epochs: Count
    """Epochs of its training."""
    strong: bool = False
    """Whether `evidence.strong_teacher` trains it, with mixed images, and not the recipe."""
    starts_from: str | None = None
    """A study with the weights of whose teacher the training starts; None for random weights."""


class ExtraSeeds(Settings):
    """More seeds for some labels, once every label has the seeds of the study."""

    seeds: Count
    """Number of seeds in total."""
    labels: list[str]
    """The labels that get them."""


class Study(Settings):
    """What a study compares, and how its page describes it."""

    name: str
    """The name of the study and of its page."""
    title: str
    """The title of its page."""
    question: str | None = None
    """What the study asks, as its page says it."""
    teacher: TrainedTeacher
    """The teacher of all students."""
    baseline: str
    """The label that all others are compared with."""
    seeds: Count
    """Number of seeds: 0, 1, ..."""
    groups: dict[str, list[str]]
    """Labels, by the heading that they have on the page."""
    split: str | None = None
    """The split of the protocol; None for all classes in DATA."""
    protocol: str = "protocol"
    """The page of its rules, in docs/results."""
    recipe: str = RECIPE
    """The recipe that all students share: a shipped one, or a file of this folder."""
    extra_seeds: ExtraSeeds | None = None
    """Which labels get more seeds."""
    shares_runs_of: str | None = None
    """A study in whose folder the runs are written, so that common runs are computed once. Its
    teacher is theirs, if it is trained on the same images for as many epochs."""
    deviation: str | None = None
    """How the study departs from the protocol; None if it does not."""
    tests_first: bool = False
    """Whether the page tests DSKD against the best other method."""
    seeds_of_first: Count = SEEDS_OF_FIRST
    """Seeds that this test needs."""
    decides_first: bool = True
    """Whether the test decides that DSKD is first; else the page calls it better or worse."""
    first_alone: bool = False
    """Whether the p-value of this test is corrected for DSKD's differences from all rows with as
    many seeds, and not for all comparisons of the page."""
    changes: list[str] = Field(default_factory=list)
    """Overrides of the recipe, as ``key=value``."""
    command: str | None = None
    """The study's name on the command line, if a ``--recipe`` gave it another name."""
    duplicates: dict[str, str] = Field(default_factory=dict)
    """Labels that are left out, each with the label that has the same settings."""
    leaves_misfits_out: bool = False
    """Whether a label that student and teacher do not allow is left out. Else it ends the study."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Such labels, each with the line that refuses it."""

    @property
    def teacher_name(self) -> str:
        """The name of the teacher: given, or the recipe's."""
        teacher = load(self.recipe).teacher
        assert teacher is not None, "a study's recipe has a teacher"
        return self.teacher.name or teacher.name

    @property
    def labels(self) -> list[str]:
        """All labels, each once."""
        return list(dict.fromkeys(label for labels in self.groups.values() for label in labels))

    @property
    def max_seeds(self) -> int:
        """The largest number of seeds that a label gets."""
        return self.extra_seeds.seeds if self.extra_seeds else self.seeds

    def folder(self, out: Path) -> Path:
        """The folder of the study's runs.

        Args:
            out: The folder of all studies.
        """
        return out / (self.shares_runs_of or self.name)


def find(name: str, out: Path) -> Study:
    """Reads a study.

    Args:
        name: A name in studies.yaml.
        out: The folder of all studies. Earlier studies are read from it.

    Raises:
        InputError: No study has this name, or an earlier study is not finished.

    Example:
        >>> find("table", Path()).baseline
        'kd'
    """
    known = read_yaml_file(HERE / "studies.yaml", "studies")
    if name not in known:
        raise unknown("study", name, known)
    study = validate(Study, {"name": name, **known[name]}, f"{name}.")
    if (HERE / study.recipe).is_file():
        study = study.model_copy(update={"recipe": str(HERE / study.recipe)})
    groups = {group: expand(labels, out) for group, labels in study.groups.items()}
    same = duplicates([label for labels in groups.values() for label in labels], study.recipe)
    groups = {group: [one for one in labels if one not in same] for group, labels in groups.items()}
    baseline = expand([study.baseline], out)[0]
    update = {"groups": groups, "duplicates": same, "baseline": baseline}
    return study.model_copy(update=update)


def duplicates(labels: Sequence[str], recipe: str) -> dict[str, str]:
    """Finds labels that have the same settings as an earlier label.

    Args:
        labels: Labels, as `dskd compare` takes them.
        recipe: The recipe that the labels change.

    Returns:
        Each duplicate with the earlier label.

    Example:
        >>> duplicates(["kd", "kd:temperature=4", "kd:temperature=2"], RECIPE)
        {'kd:temperature=4': 'kd'}
    """
    first: dict[str, str] = {}
    found = {}
    loaded = load(recipe, ["data.root=."])
    for variant in method_variants(dict.fromkeys(labels), loaded, "equal"):
        known = first.setdefault(variant.method.model_dump_json(), variant.label)
        if known != variant.label:
            found[variant.label] = known
    return found


def varied(study: Study, recipe: str | None, changes: Sequence[str]) -> Study:
    """A study with another recipe or with overrides.

    Args:
        study: A study that `find` returned.
        recipe: A recipe of another pair, which gets a page of its own; None for the study's.
        changes: Overrides, as ``key=value``.

    Raises:
        InputError: The study does not allow one of these changes.
    """
    for change in changes:
        key = change.partition("=")[0]
        if key in _FIXED_SETTINGS:
            raise InputError(f"{key} is fixed by the study; give another recipe with --recipe")
    update: dict[str, Any] = {"changes": list(changes)}
    if recipe is not None:
        if study.split is not None:
            raise InputError(f"the recipe of {study.name} is the protocol's; drop --recipe")
        name = f"{study.name}-{Path(recipe).stem}"
        update |= {"recipe": recipe, "name": name, "command": study.name}
    return study.model_copy(update=update)


def expand(labels: Sequence[str], out: Path) -> list[str]:
    """Replaces ``all`` (the methods of the table) and the placeholders in <> by labels.

    Args:
        labels: Labels and placeholders.
        out: The folder of all studies.

    Raises:
        InputError: A study that a placeholder needs is not finished.
    """
    return [one for label in labels for one in _expanded(label, out)]


def _expanded(label: str, out: Path) -> list[str]:
    if label == "all":
        return [*TABLE]
    if label in FIRST:
        return FIRST[label](out)
    if label == "<baselines>":
        return baselines(out / "table")
    if label == "<configurations of kd>":
        return configurations_of("kd")
    if label == "<configurations of baselines>":
        return [one for name in baselines(out / "table") for one in configurations_of(name)]
    if label in ("<leading configurations>", "<best>"):
        study = find("configurations", out)
        chosen = best if label == "<best>" else leading
        return chosen(study.folder(out), study.labels)
    return [label]


def steps(study: Study, out: Path) -> Iterator[tuple[list[str], int]]:
    """The order of computation: each step adds one seed.

    Args:
        study: A study that `find` returned.
        out: The folder of all studies.

    Yields:
        Labels, and the number of seeds that they have after the step.
    """
    for seeds in range(1, study.seeds + 1):
        yield study.labels, seeds
    if study.extra_seeds is not None:
        labels = expand(study.extra_seeds.labels, out)
        for seeds in range(study.seeds + 1, study.extra_seeds.seeds + 1):
            yield labels, seeds


def run_count(study: Study, out: Path) -> int:
    """The number of runs of the finished study.

    Args:
        study: A study that `find` returned.
        out: The folder of all studies.
    """
    extra = study.extra_seeds
    if extra is None:
        return study.seeds * len(study.labels)
    tuned = 2 + BASELINES  # kd and dskd have configurations too
    several = {
        "<baselines>": BASELINES,
        "<leading configurations>": tuned * LEADING,
    }
    more = sum(
        len(FIRST[label](out)) if label in FIRST else several.get(label, 1)
        for label in extra.labels
    )
    return study.seeds * len(study.labels) + (extra.seeds - study.seeds) * more
