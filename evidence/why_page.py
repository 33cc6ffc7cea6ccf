"""The page of what deep supervision does, drawn from its JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dskd.compare.statistics import Difference, holm, interval, paired
from evidence.page import machine_line, number, p_text

BASELINE = "kd"
_SHOWN = (1, 2, 5, 10, 15, 20)
"""Epochs of the table over time."""


Value = Callable[[str, str, int], float]
"""Of a label, a seed and a stage."""
Values = dict[str, list[list[float]]]
"""Of every label, of every stage, one a seed."""


class Measured(NamedTuple):
    """What the page and its figure show."""

    probe: Values
    """Test accuracy of a linear classifier, in percent."""
    last: Values
    """CKA with the teacher's last stage."""
    same: Values
    """CKA with the teacher's stage at the same depth, of the shallow stages."""
    gradient: Values
    """Norm of the gradient, the mean over the first epochs."""
    ratio: Values
    """The same over the last stage's, of the shallow stages."""


def measured(facts: Mapping[str, Any]) -> Measured:
    """From what ``evidence.why`` writes."""
    same = _values(facts, _cka(facts, "same depth"))
    gradient = _values(facts, _gradient(facts))
    return Measured(
        probe=_values(facts, lambda label, seed, stage: facts["probe"][label][seed][stage]),
        last=_values(facts, _cka(facts, "last")),
        same={label: rows[:-1] for label, rows in same.items()},
        gradient=gradient,
        ratio={
            label: [_ratios(stage, rows[-1]) for stage in rows[:-1]]
            for label, rows in gradient.items()
        },
    )


def page(facts: Mapping[str, Any]) -> str:
    """Markdown.

    Args:
        facts: As ``evidence.why`` writes them.
    """
    seeds = facts["seeds"]
    found = measured(facts)
    compared = _compared(facts, [found.probe, found.last, found.same, found.ratio])
    lines = [
        "# Why: what deep supervision does to the shallow stages",
        "",
        f"By the [protocol](protocol.md), on students of the set `final`, those of the "
        f"[table](table.md) and of [our defaults](defaults.md): {facts['student']}, taught by "
        f"{facts['teacher']}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''} each. `dskd` "
        "alone is its preset `paper`.",
        "",
        f"[why.json](why.json): {machine_line(facts)}",
        "",
        "![What each stage knows, how alike it is to the teacher, its gradient](why.svg)",
        "",
        "## How much each stage knows",
        "",
        "Test accuracy, in percent, of a linear classifier (logistic regression) on each stage's "
        "average-pooled map, trained on the training images after the student was.",
        "",
        *_stage_table(facts, found.probe, ".2f", compared[0]),
        "",
        "## How alike each stage is to the teacher",
        "",
        "Linear CKA on 512 test images, from 0 to 1, with the teacher's last stage.",
        "",
        *_stage_table(facts, found.last, ".3f", compared[1]),
        "",
        "And of the shallow stages with the teacher's at the same relative depth, which is what "
        "matched maps are trained for.",
        "",
        *_stage_table(facts, found.same, ".3f", compared[2]),
        "",
        "## How strong the gradient is",
        "",
        "Norm of the whole objective's gradient in a stage's parameters, the mean over all steps "
        f"of the first {_first_epochs(facts)} epochs.",
        "",
        *_stage_table(facts, found.gradient, ".3f"),
        "",
        "A larger loss has larger gradients everywhere; so here it is divided by the last stage's.",
        "",
        *_stage_table(facts, found.ratio, ".3f", compared[3]),
        "",
        "## DSKD's branches over time",
        "",
        "Means over seeds: the weight of each shallow stage, its two losses, and the test accuracy "
        "of its branch.",
        "",
        *_time_tables(facts),
        "± is the 95 % interval over seeds (Student's t); differences are paired by seed, and p is "
        "adjusted for all differences of the page (Holm).",
        "",
    ]
    return "\n".join(lines)


def _cka(facts: Mapping[str, Any], which: str) -> Value:
    return lambda label, seed, stage: float(facts["similarity"][label][seed][which][stage])


def _gradient(facts: Mapping[str, Any]) -> Value:
    def mean(label: str, seed: str, stage: int) -> float:
        epochs = facts["gradient"][label][seed]
        return float(sum(epoch[stage] for epoch in epochs) / len(epochs))

    return mean


def _first_epochs(facts: Mapping[str, Any]) -> int:
    return len(facts["gradient"][BASELINE][str(facts["seeds"][0])])


def _values(facts: Mapping[str, Any], value: Value) -> Values:
    """Of every label, of every stage, one a seed."""
    stages, seeds = range(len(facts["stages"])), [str(seed) for seed in facts["seeds"]]
    return {
        label: [[value(label, seed, stage) for seed in seeds] for stage in stages]
        for label in facts["probe"]
    }


def _ratios(values: Sequence[float], last: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(values, last, strict=True)]


def _compared(
    facts: Mapping[str, Any], tables: Sequence[Values]
) -> list[dict[str, list[Difference]]]:
    """Each table's differences of DSKD to KD, a stage each; p is adjusted for all of them."""
    found = [
        {
            label: [paired(*pair) for pair in zip(table[label], table[BASELINE], strict=True)]
            for label in facts["epochs"]
        }
        for table in tables
    ]
    every = [gap for rows in found for gaps in rows.values() for gap in gaps]
    adjusted = iter(holm([gap.p for gap in every]))
    return [
        {
            label: [replace(gap, p_holm=next(adjusted)) for gap in gaps]
            for label, gaps in rows.items()
        }
        for rows in found
    ]


def _stage_table(
    facts: Mapping[str, Any],
    values: Values,
    form: str,
    compared: Mapping[str, Sequence[Difference]] | None = None,
) -> list[str]:
    """A row a method, a column a stage, and the differences of DSKD to KD."""
    stages = facts["stages"][: len(values[BASELINE])]
    lines = [f"| | {' | '.join(stages)} |", f"|---|{'---:|' * len(stages)}"]
    for label, by_stage in values.items():
        cells = (number(i.mean, i.half, form) for i in map(interval, by_stage))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for label, gaps in (compared or {}).items():
        cells = (number(gap.interval.mean, gap.interval.half, "+" + form) for gap in gaps)
        lines.append(f"| {label} - {BASELINE} | {' | '.join(cells)} |")
        if any(gap.p_holm is not None for gap in gaps):
            lines.append(f"| p (Holm) | {' | '.join(p_text(gap.p_holm) for gap in gaps)} |")
    return lines


def _time_tables(facts: Mapping[str, Any]) -> list[str]:
    return [
        line
        for label, runs in facts["epochs"].items()
        for line in (f"`{label}`:", "", *_time_table(list(runs.values())), "")
    ]


def _time_table(runs: Sequence[Sequence[Mapping[str, float]]]) -> list[str]:
    keys = [key for key in runs[0][0] if key.startswith("stage")]
    stages = sorted({key.partition("/")[0] for key in keys})
    names = ("weight", "prediction", "feature", "accuracy")
    shown = [epoch for epoch in _SHOWN if epoch <= len(runs[0])]
    lines = [
        f"| | {' | '.join(f'epoch {epoch}' for epoch in shown)} |",
        f"|---|{'---:|' * len(shown)}",
    ]
    for stage in stages:
        for name in names:
            key = f"{stage}/{name}"
            means = (sum(run[epoch - 1][key] for run in runs) / len(runs) for epoch in shown)
            form = ".1f" if name == "accuracy" else ".3f"
            lines.append(f"| {stage}, {name} | {' | '.join(f'{mean:{form}}' for mean in means)} |")
    return lines
