"""Draws the page on the effect of deep supervision from its JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dskd.compare.statistics import Difference, holm, interval, paired
from evidence.page import machine_line, number, p_text

BASELINE = "kd"
_SHOWN = (1, 2, 5, 10, 15, 20)
"""Epochs in the table over time."""

Value = Callable[[str, str, int], float]
"""A measurement, by label, seed and stage."""
Values = dict[str, list[list[float]]]
"""For each label and stage, one value for each seed."""


class Measured(NamedTuple):
    """The measurements that the page and its figure show."""

    probe: Values
    """Test accuracy of a linear classifier, in percent."""
    last: Values
    """CKA with the teacher's last stage."""
    same: Values
    """CKA of the shallow stages with the teacher's stage at the same depth."""
    gradient: Values
    """Norm of the gradient, averaged over the first epochs."""
    ratio: Values
    """Gradient norm of the shallow stages, divided by that of the last stage."""


def measured(facts: Mapping[str, Any]) -> Measured:
    """Arranges the results of ``evidence.why`` by label and stage.

    Args:
        facts: The results.
    """
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
    """Draws the page.

    Args:
        facts: The results that ``evidence.why`` writes.

    Returns:
        Markdown.
    """
    seeds = facts["seeds"]
    found = measured(facts)
    compared = _compared(facts, [found.probe, found.last, found.same, found.ratio])
    lines = [
        "# Why: what deep supervision does to the shallow stages",
        "",
        "This study follows the [protocol](protocol.md). It measures students of the split "
        "`final`, from the studies [table](table.md) and [defaults](defaults.md). The student is "
        f"{facts['student']} and the teacher {facts['teacher']}, with {len(seeds)} "
        f"seed{'s' if len(seeds) > 1 else ''} for each method. `dskd` alone is the preset `paper`, "
        "not the default.",
        "",
        f"[why.json](why.json): {machine_line(facts)}",
        "",
        "![Linear probe, similarity to the teacher and gradient of each stage](why.svg)",
        "",
        "## Linear probe of each stage",
        "",
        "A linear classifier (logistic regression) is trained on the average-pooled map of each "
        "stage, after the student was trained. The table shows its test accuracy in percent.",
        "",
        *_stage_table(facts, found.probe, ".2f", compared[0]),
        "",
        "## Similarity of each stage to the teacher",
        "",
        "Linear CKA with the teacher's last stage, on 512 test images, from 0 to 1.",
        "",
        *_stage_table(facts, found.last, ".3f", compared[1]),
        "",
        "Linear CKA of the shallow stages with the teacher's stage at the same relative depth. "
        "`feature_target=matched` trains for this similarity.",
        "",
        *_stage_table(facts, found.same, ".3f", compared[2]),
        "",
        "## Gradient of each stage",
        "",
        "The norm of the gradient of the whole objective with respect to the parameters of a "
        f"stage, averaged over all steps of the first {_first_epochs(facts)} epochs.",
        "",
        *_stage_table(facts, found.gradient, ".3f"),
        "",
        "A larger loss gives larger gradients in all stages. So this table divides by the gradient "
        "norm of the last stage.",
        "",
        *_stage_table(facts, found.ratio, ".3f", compared[3]),
        "",
        "## The branches of DSKD during training",
        "",
        "The table shows means over seeds: the weight of each shallow stage, its two losses, and "
        "the test accuracy of its branch.",
        "",
        *_time_tables(facts),
        "± is the 95 % interval over seeds (Student's t). Differences are paired by seed. The "
        "p-values are corrected for all differences on this page (Holm).",
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
    """For each label and stage, one value for each seed."""
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
    """For each table, the differences of DSKD to KD by stage, with corrected p-values."""
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
    """A table with a row for each method, a column for each stage, and the differences to KD."""
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
    names = ("weight", "prediction", "feature", "test_accuracy")
    shown = [epoch for epoch in _SHOWN if epoch <= len(runs[0])]
    lines = [
        f"| | {' | '.join(f'epoch {epoch}' for epoch in shown)} |",
        f"|---|{'---:|' * len(shown)}",
    ]
    for stage in stages:
        for name in names:
            key = f"{stage}/{name}"
            means = (sum(run[epoch - 1][key] for run in runs) / len(runs) for epoch in shown)
            form = ".1f" if name == "test_accuracy" else ".3f"
            cells = " | ".join(f"{mean:{form}}" for mean in means)
            lines.append(f"| {stage}, {name.replace('_', ' ')} | {cells} |")
    return lines
