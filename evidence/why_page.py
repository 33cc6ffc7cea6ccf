"""The page of what deep supervision does, drawn from its JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dskd.compare.statistics import Difference, holm, interval, paired
from evidence.page import machine_line, number, p_text

BASELINE = "kd"
_SHOWN = (1, 2, 5, 10, 15, 20)
"""Epochs of the table over time."""


def page(facts: Mapping[str, Any]) -> str:
    """Markdown.

    Args:
        facts: As ``evidence.why`` writes them.
    """
    seeds = facts["seeds"]
    lines = [
        "# Why: what deep supervision does to the shallow stages",
        "",
        f"By the [protocol](protocol.md), on the students of the [table](table.md): "
        f"{facts['student']}, taught by {facts['teacher']}, {len(seeds)} "
        f"seed{'s' if len(seeds) > 1 else ''} each.",
        "",
        f"[why.json](why.json): {machine_line(facts)}",
        "",
        "![What each stage knows, and how alike it is to the teacher](why.svg)",
        "",
        "## How much each stage knows",
        "",
        "Test accuracy, in percent, of a linear classifier (logistic regression) on each stage's "
        "average-pooled map, trained on the training pictures after the student was.",
        "",
        *_stage_table(facts, lambda label, seed, stage: facts["probe"][label][seed][stage], "+.2f"),
        "",
        "## How alike each stage is to the teacher",
        "",
        "Linear CKA on 512 test pictures, from 0 to 1, with the teacher's last stage.",
        "",
        *_stage_table(facts, _cka(facts, "last"), "+.3f"),
        "",
        "And with the teacher's stage at the same relative depth.",
        "",
        *_stage_table(facts, _cka(facts, "same depth"), "+.3f"),
        "",
        "## How strong the gradient is",
        "",
        "Norm of the whole objective's gradient in a stage's parameters, the mean over all steps "
        f"of the first {_first_epochs(facts)} epochs.",
        "",
        *_stage_table(facts, _gradient(facts), "+.3f"),
        "",
        "## DSKD's branches over time",
        "",
        "Means over seeds: the weight of each shallow stage, its two losses, and the test accuracy "
        "of its branch.",
        "",
        *_time_tables(facts),
        "± is the 95 % interval over seeds (Student's t); differences are paired by seed, and p is "
        "adjusted for the stages of its row (Holm).",
        "",
    ]
    return "\n".join(lines)


Value = Callable[[str, str, int], float]
"""Of a label, a seed and a stage."""


def _cka(facts: Mapping[str, Any], which: str) -> Value:
    return lambda label, seed, stage: float(facts["similarity"][label][seed][which][stage])


def _gradient(facts: Mapping[str, Any]) -> Value:
    def mean(label: str, seed: str, stage: int) -> float:
        epochs = facts["gradient"][label][seed]
        return float(sum(epoch[stage] for epoch in epochs) / len(epochs))

    return mean


def _first_epochs(facts: Mapping[str, Any]) -> int:
    return len(facts["gradient"][BASELINE][str(facts["seeds"][0])])


def _stage_table(facts: Mapping[str, Any], value: Value, form: str) -> list[str]:
    """A row a method, a column a stage, and the differences of DSKD to KD."""
    stages = range(len(facts["stages"]))
    seeds = [str(seed) for seed in facts["seeds"]]
    values = {
        label: [[value(label, seed, stage) for seed in seeds] for stage in stages]
        for label in facts["probe"]
    }
    plain = form.removeprefix("+")
    lines = [
        f"| | {' | '.join(f'{name}' for name in facts['stages'])} |",
        f"|---|{'---:|' * len(stages)}",
    ]
    for label, by_stage in values.items():
        cells = (number(i.mean, i.half, plain) for i in map(interval, by_stage))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for label in facts["epochs"]:
        gaps = [paired(values[label][stage], values[BASELINE][stage]) for stage in stages]
        cells = (number(gap.interval.mean, gap.interval.half, form) for gap in gaps)
        lines.append(f"| {label} - {BASELINE} | {' | '.join(cells)} |")
        if all(gap.p is not None for gap in gaps):
            lines.append(f"| p (Holm) | {' | '.join(map(p_text, _adjusted(gaps)))} |")
    return lines


def _adjusted(gaps: Sequence[Difference]) -> list[float]:
    return holm([gap.p for gap in gaps if gap.p is not None])


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
