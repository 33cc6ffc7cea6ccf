"""The page of a study, drawn from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEVEL = 0.05
"""A difference whose adjusted p-value lies below is called one."""
SEEDS_OF_FIRST = 5
"""That the protocol asks for."""
OURS = "dskd"


def page(facts: Mapping[str, Any]) -> str:
    """Markdown: how it was computed, then a table for each group, the highest mean first.

    Args:
        facts: As ``evidence.study`` writes them.
    """
    lines = [f"# {facts['title']}", "", *_how(facts), ""]
    lines += [f"![{facts['title']}]({facts['study']}.svg)", ""]
    for name, labels in facts["groups"].items():
        lines += [f"## {name}", "", *_table(facts, labels), ""]
    if facts["first"] is not None:
        added = facts["beside"] is not None
        title = "Is DSKD better than the best of the others?" if added else "Is DSKD first?"
        lines += [f"## {title}", "", first(facts["first"], added), "", over(facts["first"]), ""]
    return "\n".join([*lines, *_notes(facts)])


def first(facts: Mapping[str, Any], added: bool = False) -> str:
    """Whether DSKD is what the protocol calls first, as a sentence.

    Args:
        facts: The means of DSKD and of the best other method, and their difference.
        added: Whether the page is not the protocol's, which alone says what is first.
    """
    known = facts["p_holm"] is not None
    p = f", p {p_text(facts['p'])} alone, {p_text(facts['p_holm'])} by Holm" if known else ""
    said = (
        f"`{facts['label']}` has {facts['mean']:.2f} %, the best other method, "
        f"`{facts['second']}`, {facts['second_mean']:.2f} %; the difference at the same "
        f"{facts['seeds']} seeds is {number(facts['gap'], facts['gap_half'], '+.2f')} "
        f"points{p}. "
    )
    if facts["seeds"] < SEEDS_OF_FIRST:
        return said + f"The protocol asks this of {SEEDS_OF_FIRST} seeds."
    if added:
        found = {"better": "It is better", "worse": "It is worse", "": "No difference is shown"}
        return said + f"**{found[verdict(facts)]}**, on a page that the protocol does not have."
    return said + ("**DSKD is first.**" if verdict(facts) == "better" else "**It is not first.**")


def over(facts: Mapping[str, Any]) -> str:
    """What DSKD's best row has over each of the others, as a sentence."""
    gaps = sorted(facts["over"].items(), key=lambda gap: float(gap[1]["gap"]), reverse=True)
    said = [f"`{label}` {number(gap['gap'], gap['gap_half'], '+.2f')}" for label, gap in gaps]
    return f"What it has over each of the others, adjusted for nothing: {', '.join(said)}."


def _how(facts: Mapping[str, Any]) -> list[str]:
    teacher, train = facts["teacher"], facts["recipe"]["train"]
    done, runs = facts["done"], facts["runs"]
    state = (
        f"All {runs} runs are there."
        if done == runs
        else f"**Not finished**: {done} of {runs} runs are there."
    )
    return [
        f"{_rules(facts)}: student "
        f"{facts['recipe']['student']['name']}, teacher {teacher['name']} "
        f"({teacher['accuracy']:.1f} % after {teacher['epochs']} epochs), {train['epochs']} "
        f"epochs, accuracy on {facts['images']:,} test images after the last one."
        f"{_ours(facts)} {state} Training these students took {facts['hours']:.1f} hours.",
        "",
        f"[{facts['study']}.json]({facts['study']}.json): {machine_line(facts)}",
    ]


def machine_line(facts: Mapping[str, Any]) -> str:
    """By which command, where and when something was computed."""
    machine = facts["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    where = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return (
        f"`{facts['command']}` at commit {facts['commit']}, {facts['date']}; {where}, {threads}; "
        f"Python {machine['python']}, {packages}."
    )


def _rules(facts: Mapping[str, Any]) -> str:
    """By which rules it was run."""
    if facts["set"] is None:
        changes = f" ({', '.join(facts['changes'])})" if facts["changes"] else ""
        return f"Data set {facts['recipe']['data']['name']}{changes}"
    otherwise = [*([facts["beside"]] if facts["beside"] else []), *facts["changes"]]
    if otherwise:
        return f"**Beside the protocol** ({', '.join(otherwise)}), set `{facts['set']}`"
    return f"By the [protocol](protocol.md), set `{facts['set']}`"


def _ours(facts: Mapping[str, Any]) -> str:
    """What the name of the method alone stands for, where studies of the protocol use it."""
    told = facts["set"] is not None and OURS in facts["rows"]
    return f" `{OURS}` alone is its preset `paper`." if told else ""


def _table(facts: Mapping[str, Any], labels: list[str]) -> list[str]:
    against = facts["baseline"]
    lines = [
        f"| | accuracy, % (each seed) | mean | against {against} | p (Holm) | agreement, % "
        "| trained beside | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    means = {label: facts["rows"][label]["mean"] or 0.0 for label in labels}
    for label in sorted(labels, key=means.__getitem__, reverse=True):
        row = facts["rows"][label]
        each = ", ".join(
            [f"{value:.1f}" for value in row["accuracies"]] + ["failed"] * len(row["failed"])
        )
        agreed = "" if row["agreement"] is None else f"{row['agreement']:.1f}"
        lines.append(
            f"| `{label}` | {each} | {number(row['mean'], row['half'])} "
            f"| {number(row['gap'], row['gap_half'], '+.2f')} | {p_text(row['p_holm'])} | {agreed} "
            f"| {_beside(row)} | {verdict(row)} |"
        )
    return lines


def _beside(row: Mapping[str, Any]) -> str:
    """Parameters that are trained beside the student and not deployed."""
    return "" if row["extra_parameters"] is None else f"{row['extra_parameters']:,}"


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


def number(mean: float | None, half: float | None, form: str = ".2f") -> str:
    """A mean and half its interval: ``+1.25 ± 0.40``.

    Example:
        >>> number(1.25, 0.4, "+.1f"), number(1.25, None), number(None, None)
        ('+1.2 ± 0.4', '1.25', '')
    """
    if mean is None:
        return ""
    return f"{mean:{form}}" + ("" if half is None else f" ± {half:{form.removeprefix('+')}}")


def p_text(value: float | None) -> str:
    """An adjusted p-value."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _deployed(facts: Mapping[str, Any]) -> str:
    """How many are deployed, and by which methods more."""
    deployed = {k: row["parameters"] for k, row in facts["rows"].items() if row["parameters"]}
    if not deployed:
        return ""
    usual = min(deployed.values())
    others = [f", {count:,} by `{label}`" for label, count in deployed.items() if count != usual]
    return f" ({usual:,} are{''.join(others)})"


def _notes(facts: Mapping[str, Any]) -> list[str]:
    errors = [row["sampling_error"] for row in facts["rows"].values() if row["sampling_error"]]
    failed = [
        f"- `{label}`, seed {seed}, failed: {why}"
        for label, row in facts["rows"].items()
        for seed, why in row["failed"].items()
    ]
    same = [f"- `{label}` is `{one}`, with other words" for label, one in facts["same"].items()]
    return [
        "± is the 95 % interval over seeds (Student's t): the noise of training. Differences are "
        "paired by seed; *better* and *worse* as the protocol says them, and of these images and "
        "this teacher: that the test images are a sample is in no interval here, and would move "
        f"an accuracy by another ± {max(errors, default=0):.1f} points (Wilson). *Agreement* is "
        "with the teacher's outputs; *trained beside* are parameters that are not deployed"
        f"{_deployed(facts)}.",
        *(["", *failed] if failed else []),
        *(["", *same] if same else []),
        "",
    ]
