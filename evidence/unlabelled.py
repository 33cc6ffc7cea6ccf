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

from dskd.compare.grid import load_plan
from dskd.compare.progress import LogLines
from dskd.compare.runner import run_grid
from dskd.compare.statistics import Difference, holm, interval, paired
from dskd.config.recipe import load_by_labels
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
    "few": (["train.warmup=0"], "the labels of the students, a tenth of all"),
    "all": (
        ["train.warmup=0", "data.fraction=1.0", "train.epochs=30", "train.batch_size=64"],
        "the labels of all training images",
    ),
}
"""How each teacher is trained, and with which labels. They were trained before the rules had a
warm-up."""


class Group(NamedTuple):
    """Students that learn from the same teacher and the same images, in one comparison.

    Attributes:
        teacher: A key of `TEACHERS`; empty for labels alone.
        unlabelled: Whether images without labels join.
    """

    teacher: str = ""
    unlabelled: bool = False

    @property
    def name(self) -> str:
        """The name of its folder."""
        parts = [self.teacher or "labels", "unlabelled" if self.unlabelled else ""]
        return "-".join(filter(None, parts))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of its students."""
        return METHODS if self.teacher else ("ce",)


GROUPS = (
    Group(),
    *(Group(teacher, unlabelled) for teacher in TEACHERS for unlabelled in (False, True)),
)


def teacher_of(name: str, data: Path, out: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The result of a teacher, which is trained if it is not finished.

    Args:
        name: A key of `TEACHERS`.
        data: The folder of the photos.
        out: The folder of the study.
        changes: Settings that depart from the protocol.
    """
    own = ["student.name=timm/resnet18", f"data.root={data}", f"out={out / 'teachers' / name}"]
    return result_of(load_by_labels(RECIPE, [*TEACHERS[name][0], *changes, *own]))


def students_of(
    group: Group, data: Path, out: Path, changes: Sequence[str] = (), seeds: int = SEEDS
) -> dict[str, list[float | None]]:
    """The accuracies of the students of a group, which are trained if they are not finished.

    Args:
        group: What they learn from.
        data: As for `teacher_of`.
        out: As for `teacher_of`.
        changes: As for `teacher_of`.
        seeds: Number of seeds.

    Returns:
        By method, one of each seed; None for a run whose loss became NaN or infinite.
    """
    own = [f"data.root={data}"]
    weights = out / "teachers" / group.teacher / "student.safetensors"
    own.append(f"teacher.checkpoint={weights}" if group.teacher else "teacher=null")
    if group.unlabelled:
        own += [f"data.unlabelled={data}", f"train.batch_size={2 * LABELLED}"]
    grid = load_plan(RECIPE, [*changes, *own], group.methods, out / group.name, seeds=seeds)
    found = run_grid(grid, LogLines())
    return {
        variant.label: [
            variant.results[seed]["test_accuracy"] if seed in variant.results else None
            for seed in range(seeds)
        ]
        for variant in found.variants
    }


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
    return {
        **source,
        "teachers": {name: teacher_of(name, *where)["test_accuracy"] for name in TEACHERS},
        "accuracies": {group.name: students_of(group, *where, seeds) for group in GROUPS},
    }


def page(facts: Mapping[str, Any]) -> str:
    """The page of the study.

    Args:
        facts: What `compute` returned.
    """
    seeds = len(facts["accuracies"]["labels"]["ce"])
    lines = [
        "# Images without labels",
        "",
        *bullets(
            "What does it bring to join images without labels to few labelled ones?",
            " ".join(_findings(facts)),
            f"{seeds} seeds of one split of 4,317 photos, with one "
            "teacher of each kind. The p-values are corrected for the four comparisons (Holm).",
        ),
        "",
        f"{rules(facts)} Accuracies are top-1 on the test split in percent, after the last epoch, "
        f"with 95 % intervals over {seeds} seeds.",
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


class _Row(NamedTuple):
    """A method with images without labels against the same method without them."""

    teacher: str
    method: str
    alone: Sequence[float | None]
    joined: Sequence[float | None]

    @property
    def gap(self) -> Difference:
        pairs = zip(self.joined, self.alone, strict=True)
        both = [(one, other) for one, other in pairs if one is not None and other is not None]
        return paired([one for one, _ in both], [other for _, other in both])


def _compared(facts: Mapping[str, Any]) -> Iterator[tuple[_Row, float | None]]:
    """The students with images without labels against those without, with corrected p-values."""
    accuracies = facts["accuracies"]
    found = [
        _Row(
            teacher,
            method,
            accuracies[Group(teacher).name][method],
            accuracies[Group(teacher, unlabelled=True).name][method],
        )
        for teacher in TEACHERS
        for method in METHODS
    ]
    yield from zip(found, holm([row.gap.p for row in found]), strict=True)


def _rows(facts: Mapping[str, Any]) -> Iterator[str]:
    def shown(values: Sequence[float | None]) -> str:
        finished = [value for value in values if value is not None]
        found, failed = interval(finished), len(values) - len(finished)
        return number(found.mean, found.half, ".1f") + (f" ({failed} failed)" if failed else "")

    yield f"| no teacher | | `ce` | {shown(facts['accuracies']['labels']['ce'])} | | | | |"
    for row, p in _compared(facts):
        yield (
            f"| {TEACHERS[row.teacher][1]} | {facts['teachers'][row.teacher]:.1f} | "
            f"`{row.method}` | {shown(row.alone)} | {shown(row.joined)} | {gap_text(row.gap)} | "
            f"{p_text(p)} | {gap_verdict(row.gap, p)} |"
        )


def _findings(facts: Mapping[str, Any]) -> Iterator[str]:
    for row, p in _compared(facts):
        yield (
            f"`{row.method}`, with a teacher that learned from {TEACHERS[row.teacher][1]}: "
            f"{gap_sentence(row.gap, p)}."
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
