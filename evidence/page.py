"""The page of a study, drawn from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEVEL = 0.05
"""A difference whose adjusted p-value lies below is called one."""


def page(facts: Mapping[str, Any]) -> str:
    """Markdown: how it was computed, then a table for each group.

    Args:
        facts: As ``evidence.study`` writes them.
    """
    lines = [f"# {facts['title']}", "", *_how(facts), ""]
    for name, labels in facts["groups"].items():
        lines += [f"## {name}", "", *_table(facts, labels), ""]
    return "\n".join([*lines, *_notes(facts)])


def _how(facts: Mapping[str, Any]) -> list[str]:
    teacher, train = facts["teacher"], facts["recipe"]["train"]
    machine = facts["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    done = [len(row["seeds"]) + len(row["failed"]) for row in facts["rows"].values()]
    state = (
        f"Every row has {facts['seeds']} seeds."
        if min(done) >= facts["seeds"]
        else f"**Not finished**: {sum(done)} of {facts['seeds'] * len(done)} runs are there."
    )
    return [
        f"By the [protocol](protocol.md), set `{facts['set']}`: student "
        f"{facts['recipe']['student']['name']}, teacher {teacher['name']} "
        f"({teacher['accuracy']:.1f} % after {teacher['epochs']} epochs), {train['epochs']} "
        f"epochs, accuracy on {facts['pictures']:,} test pictures after the last one. {state}",
        "",
        f"[{facts['study']}.json]({facts['study']}.json): `{facts['command']}` at commit "
        f"{facts['commit']}, {facts['date']}; {machine['processor']}, "
        f"{machine['threads']} threads; Python {machine['python']}, {packages}.",
    ]


def _table(facts: Mapping[str, Any], labels: list[str]) -> list[str]:
    against = facts["baseline"]
    lines = [
        f"| | accuracy, % (each seed) | mean | against {against} | p (Holm) | agreement, % | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for label in labels:
        row = facts["rows"][label]
        each = ", ".join(f"{value:.1f}" for value in row["accuracies"])
        agreed = "" if row["agreement"] is None else f"{row['agreement']:.1f}"
        lines.append(
            f"| `{label}` | {each or 'failed'} | {_number(row['mean'], row['half'])} "
            f"| {_number(row['gap'], row['gap_half'], '+')} | {_p(row['p_holm'])} | {agreed} "
            f"| {verdict(row)} |"
        )
    return lines


def verdict(row: Mapping[str, Any]) -> str:
    """What the protocol lets be said of a row: better, worse, or nothing.

    Example:
        >>> verdict({"gap": 1.0, "gap_half": 0.5, "p_holm": 0.01})
        'better'
    """
    gap, half, p = row["gap"], row["gap_half"], row["p_holm"]
    if gap is None or half is None or p is None or p >= LEVEL or abs(gap) <= half:
        return ""
    return "better" if gap > 0 else "worse"


def _number(mean: float | None, half: float | None, sign: str = "") -> str:
    if mean is None:
        return ""
    return f"{mean:{sign}.2f}" if half is None else f"{mean:{sign}.2f} ± {half:.2f}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _notes(facts: Mapping[str, Any]) -> list[str]:
    errors = [row["sampling_error"] for row in facts["rows"].values() if row["sampling_error"]]
    failed = [
        f"- `{label}`, seed {seed}, failed: {why}"
        for label, row in facts["rows"].items()
        for seed, why in row["failed"].items()
    ]
    return [
        "± is the 95 % interval over seeds (Student's t): the noise of training. Differences are "
        "paired by seed; *better* and *worse* as the protocol says them. That the test pictures "
        f"are a sample is another ± {max(errors, default=0):.1f} points (Wilson), the same for all "
        "rows.",
        *(["", *failed] if failed else []),
        "",
    ]
