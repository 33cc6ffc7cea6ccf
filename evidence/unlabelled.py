"""Computes the study on images without labels: ``python -m evidence.unlabelled DATA OUT``.

DATA holds a folder of photos for each class. OUT takes the teachers and the students. Its rules are
in docs/results/protocol-unlabelled.md. The same command continues a study that was stopped. After
the last run the results are written to ``docs/results/unlabelled.json`` and drawn as
``docs/results/unlabelled.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dskd.compare.statistics import Difference, holm, interval, paired
from dskd.config.recipe import load, load_by_labels
from evidence.command import origin, rules, study_arguments, write_results
from evidence.exits import exit_codes
from evidence.numbers import gap_sentence, gap_text, gap_verdict, number, p_text
from evidence.opening import bullets
from evidence.page import machine_line
from evidence.trained import result_of

RECIPE = str(Path(__file__).parent / "unlabelled.yaml")
SEEDS = 3
METHODS = ("kd", "dskd")
LABELLED = 32
"""Labelled images of every step."""
TEACHERS = {
    "few": (["train.epochs=100"], "the labels of the students, a tenth of all"),
    "all": (
        ["data.fraction=1.0", "train.epochs=30", "train.batch_size=64"],
        "the labels of all training images",
    ),
}
"""How each teacher is trained, and with which labels."""


class Setting(NamedTuple):
    """What a student learns from.

    Attributes:
        method: The name of the method.
        teacher: A key of `TEACHERS`; empty for labels alone.
        unlabelled: Whether images without labels join.
    """

    method: str
    teacher: str = ""
    unlabelled: bool = False

    @property
    def name(self) -> str:
        """The name of its runs."""
        parts = [self.method, self.teacher, "unlabelled" if self.unlabelled else ""]
        return "-".join(filter(None, parts))


SETTINGS = (
    Setting("ce"),
    *(
        Setting(method, teacher, unlabelled)
        for teacher in TEACHERS
        for method in METHODS
        for unlabelled in (False, True)
    ),
)


def teacher_of(name: str, data: Path, out: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The result of a teacher, which is trained if it is not finished.

    Args:
        name: A key of `TEACHERS`.
        data: The folder of the photos.
        out: The folder of the study.
        changes: Settings that depart from the protocol.
    """
    folder = out / f"teacher-{name}"
    own = ["student.name=timm/resnet18", f"data.root={data}", f"out={folder}"]
    return result_of(load_by_labels(RECIPE, [*TEACHERS[name][0], *changes, *own]))


def student_of(
    setting: Setting, seed: int, data: Path, out: Path, changes: Sequence[str] = ()
) -> dict[str, Any]:
    """The result of a student, which is trained if it is not finished.

    Args:
        setting: What it learns from.
        seed: Its seed.
        data: As for `teacher_of`.
        out: As for `teacher_of`.
        changes: As for `teacher_of`.
    """
    folder = out / f"{setting.name}-seed{seed}"
    own = [f"data.root={data}", f"seed={seed}", f"out={folder}"]
    if not setting.teacher:
        return result_of(load_by_labels(RECIPE, [*changes, *own]))
    own += [
        f"method.name={setting.method}",
        f"teacher.checkpoint={out / f'teacher-{setting.teacher}' / 'student.safetensors'}",
    ]
    if setting.unlabelled:
        own += [f"data.unlabelled={data}", f"train.batch_size={2 * LABELLED}"]
    return result_of(load(RECIPE, [*changes, *own]))


def compute(
    data: Path, out: Path, changes: Sequence[str] = (), seeds: int = SEEDS
) -> dict[str, Any]:
    """Computes the missing runs.

    Args:
        data: The folder of the photos.
        out: The folder of the study.
        changes: Settings that depart from the protocol.
        seeds: Number of seeds.

    Returns:
        Everything that the page shows.
    """
    source = origin("unlabelled", changes)
    where = data.resolve(), out.resolve(), changes
    teachers = {name: teacher_of(name, *where)["test_accuracy"] for name in TEACHERS}
    accuracies: dict[str, list[float]] = {setting.name: [] for setting in SETTINGS}
    for seed in range(seeds):
        for setting in SETTINGS:
            found = student_of(setting, seed, *where)
            accuracies[setting.name].append(found["test_accuracy"])
    return {
        **source,
        "teachers": teachers,
        "accuracies": accuracies,
    }


def page(facts: Mapping[str, Any]) -> str:
    """The page of the study.

    Args:
        facts: What `compute` returned.
    """
    lines = [
        "# Images without labels",
        "",
        *bullets(
            "What does it bring to join images without labels to few labelled ones?",
            " ".join(_findings(facts)),
            f"{len(facts['accuracies']['ce'])} seeds of one split of 4,317 photos, with one "
            "teacher of each kind. The p-values are corrected for the four comparisons (Holm).",
        ),
        "",
        f"{rules(facts)} Accuracies are top-1 "
        "on the test split in percent, after the last epoch, with 95 % intervals over "
        f"{len(facts['accuracies']['ce'])} seeds.",
        "",
        "| teacher learned from | its accuracy | method | labels alone | with images without "
        "labels | difference | p (Holm) | |",
        "|---|---:|---|---:|---:|---:|---:|---|",
        *_rows(facts),
        "",
        machine_line(facts),
        "",
    ]
    return "\n".join(lines)


def _compared(facts: Mapping[str, Any]) -> Iterator[tuple[Setting, Difference, float | None]]:
    """The students with images without labels against those without, with corrected p-values."""
    accuracies = facts["accuracies"]
    joined = [setting for setting in SETTINGS if setting.unlabelled]
    found = [
        paired(accuracies[one.name], accuracies[one._replace(unlabelled=False).name])
        for one in joined
    ]
    yield from zip(joined, found, holm([one.p for one in found]), strict=True)


def _rows(facts: Mapping[str, Any]) -> Iterator[str]:
    def shown(name: str) -> str:
        found = interval(facts["accuracies"][name])
        return number(found.mean, found.half, ".1f")

    yield f"| no teacher | | `ce` | {shown('ce')} | | | | |"
    for setting, gap, p in _compared(facts):
        yield (
            f"| {TEACHERS[setting.teacher][1]} | {facts['teachers'][setting.teacher]:.1f} | "
            f"`{setting.method}` | {shown(setting._replace(unlabelled=False).name)} | "
            f"{shown(setting.name)} | {gap_text(gap)} | {p_text(p)} | {gap_verdict(gap, p)} |"
        )


def _findings(facts: Mapping[str, Any]) -> Iterator[str]:
    for setting, gap, p in _compared(facts):
        yield (
            f"`{setting.method}`, with a teacher that learned from "
            f"{TEACHERS[setting.teacher][1]}: {gap_sentence(gap, p)}."
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes the missing runs and writes the page.

    Args:
        arguments: The command line; None for that of the process.
    """
    chosen = study_arguments(__doc__, arguments, SEEDS)
    with exit_codes():
        facts = compute(chosen.data, chosen.out / "unlabelled", chosen.changes, chosen.seeds)
    write_results(chosen.results, "unlabelled", facts, page(facts))


if __name__ == "__main__":
    main()
