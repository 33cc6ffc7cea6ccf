"""Draws the page on the effect of deep supervision from its JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dskd.compare.statistics import Difference, holm, interval, paired
from evidence.numbers import gap_verdict, number, p_text
from evidence.opening import bullets, finding
from evidence.page import machine_line
from evidence.rows import row_name

BASELINE = "kd"
_QUESTION = (
    "Does deep supervision change what the stages of the student represent, and the gradients that "
    "they receive?"
)
_COMPARED = (
    "the linear probe",
    "the similarity to the teacher's last stage",
    "the similarity to the teacher's stage at the same depth",
    "the gradient relative to that of the last stage",
)
"""The tables that compare DSKD with KD."""
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
    facts = with_row_names(facts)
    found = measured(facts)
    compared = _compared(facts, [found.probe, found.last, found.same, found.ratio])
    lines = [
        "## Linear probe of each stage",
        "",
        "After the student was trained, a linear classifier (logistic regression) is trained on "
        "the average-pooled feature map of each stage. The table shows its test accuracy in "
        "percent.",
        "",
        *_stage_table(found.probe, ".2f", compared[0]),
        "",
        "## Similarity of each stage to the teacher",
        "",
        "The similarity is linear CKA on 512 test images. It is between 0 and 1. The first table "
        "compares each stage of the student with the last stage of the teacher.",
        "",
        *_stage_table(found.last, ".3f", compared[1]),
        "",
        "The second table compares each shallow stage with the teacher's stage of the same "
        "number. `feature_target=matched` trains for this similarity.",
        "",
        *_stage_table(found.same, ".3f", compared[2]),
        "",
        "## Gradient of each stage",
        "",
        "The table shows the norm of the gradient of the whole objective with respect to the "
        "parameters of a stage, averaged over all steps of the first "
        f"{_first_epochs(facts)} epochs.",
        "",
        *_stage_table(found.gradient, ".3f"),
        "",
        "A larger loss gives larger gradients in all stages. So the next table divides each norm "
        "by that of the last stage.",
        "",
        *_stage_table(found.ratio, ".3f", compared[3]),
        "",
        "## The branches of DSKD during training",
        "",
        "The tables show means over seeds: the weight of each shallow stage, its two losses (of "
        "the predictions and of the features), and the test accuracy of its branch in percent.",
        "",
        *_time_tables(facts),
        "## Details",
        "",
        *_details(facts),
        "",
    ]
    answer = finding("why", "\n".join(lines)) or _answer(compared)
    head = [
        "# Why: the effect of deep supervision on the shallow stages",
        "",
        *bullets(_QUESTION, answer, _certainty(facts, compared)),
        "",
        "The [overview](README.md#words) explains the words.",
        "",
        "![Linear probe, similarity to the teacher and gradient of each stage](why.svg)",
        "",
    ]
    return "\n".join([*head, *lines])


def with_row_names(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The results with the names that `dskd compare` takes today.

    Args:
        facts: The results that ``evidence.why`` writes.
    """
    return {
        **facts,
        **{
            key: {row_name(label, preset=True): values for label, values in facts[key].items()}
            for key in ("probe", "similarity", "gradient", "epochs")
        },
    }


def stage_names(stages: Sequence[Any]) -> list[str]:
    """Names of stages in tables and figures.

    Args:
        stages: Something for each stage.
    """
    return [f"stage {number}" for number, _ in enumerate(stages, 1)]


def _answer(compared: Sequence[Mapping[str, Sequence[Difference]]]) -> str:
    """Counts the differences to KD, and those that are significant, by table."""
    significant: list[float] = []
    parts = []
    for name, rows in zip(_COMPARED, compared, strict=True):
        gaps = [gap for own in rows.values() for gap in own]
        shown = [gap.interval.mean for gap in gaps if gap_verdict(gap, gap.p_holm)]
        parts.append(f"{len(shown)} of {len(gaps)} in {name}")
        significant += shown
    forms = [f"`{label}`" for label in compared[0]]
    tested = sum(len(gaps) for rows in compared for gaps in rows.values())
    text = (
        f"{' and '.join(forms)} {'are' if len(forms) > 1 else 'is'} compared with `{BASELINE}` at "
        f"each stage that a table covers. Of these {tested} differences, {len(significant)} are "
        f"significant: {'; '.join(parts)}."
    )
    if not significant:
        return text
    positive = sum(gap > 0 for gap in significant)
    if positive == len(significant):
        return f"{text} In all of these, the value of DSKD is the larger one."
    return f"{text} In {positive} of these {len(significant)}, the value of DSKD is the larger one."


def _certainty(
    facts: Mapping[str, Any], compared: Sequence[Mapping[str, Sequence[Difference]]]
) -> str:
    seeds = len(facts["seeds"])
    count = sum(len(gaps) for rows in compared for gaps in rows.values())
    return (
        f"The {count} differences are paired over {seeds} seed{'s' if seeds > 1 else ''} and "
        "corrected together (Holm); they describe the stages, and do not show that these changes "
        "cause a higher accuracy."
    )


def _details(facts: Mapping[str, Any]) -> list[str]:
    seeds = len(facts["seeds"])
    return [
        "The study follows the [protocol](protocol.md). It measures students of the split "
        "`final`, from the studies [table](table.md) and [defaults](defaults.md). The student is "
        f"{facts['student']} and the teacher {facts['teacher']}, with {seeds} "
        f"seed{'s' if seeds > 1 else ''} for each method. ± is the 95 % interval over seeds "
        "(Student's t).",
        "",
        f"[why.json](why.json): {machine_line(facts)}",
    ]


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
    values: Values,
    form: str,
    compared: Mapping[str, Sequence[Difference]] | None = None,
) -> list[str]:
    """A table with a row for each method, a column for each stage, and the differences to KD."""
    stages = stage_names(values[BASELINE])
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
    for number_of, stage in enumerate(stages, 1):
        for name in names:
            key = f"{stage}/{name}"
            means = (sum(run[epoch - 1][key] for run in runs) / len(runs) for epoch in shown)
            form = ".1f" if name == "test_accuracy" else ".3f"
            cells = " | ".join(f"{mean:{form}}" for mean in means)
            lines.append(f"| stage {number_of}, {name.replace('_', ' ')} | {cells} |")
    return lines
