"""Draws the page of a study from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evidence.numbers import number, p_text, verdict
from evidence.opening import SEEDS_OF_FIRST, opening
from evidence.rows import renamed

TITLES = {True: "Is DSKD first?", False: "Is DSKD better than the best other method?"}
"""The heading of the test of DSKD, by whether it decides that DSKD is first."""
STRONG_TEACHERS, STUDENT_EPOCHS = "protocol-first", 20
"""The protocol that sets an aim for the teacher."""
AIM = 8
"""Points of test accuracy that its teacher shall stand above KD's student."""
_COSTS = (
    "The named rows have the most seeds, the others are small points. The time is that of one "
    "seed, without that of the teacher. Other work on the machine may have made it longer."
)
_READING = "The [overview](README.md#words) explains the columns and words."


def page(facts: Mapping[str, Any]) -> str:
    """Draws the page: the opening, a table for each group, then how the study was computed.

    The rows of a table are sorted by mean, the highest first.

    Args:
        facts: The results that ``evidence.study`` writes.

    Returns:
        Markdown.
    """
    facts = renamed(facts)
    lines = []
    for name, labels in facts["groups"].items():
        lines += [f"## {name}", "", *_table(facts, labels), ""]
    if facts["first"] is not None:
        added = facts["deviation"] is not None
        decides = not added and facts["first"].get("decides", True)
        title = TITLES[decides]
        answer = f"{first(facts['first'], added)}{_not_compared(facts)}"
        lines += [f"## {title}", "", answer, "", over(facts["first"]), ""]
    elif text := _not_compared(facts).strip():
        decides = facts["deviation"] is None and facts["decides"]
        said = "DSKD is not shown to be first" if decides else "No difference is shown"
        lines += [f"## {TITLES[decides]}", "", f"{text} **{said}.**", ""]
    head = [f"# {facts['title']}", "", *opening(facts, "\n".join(lines)), "", _READING, ""]
    head += [f"![{facts['title']}]({facts['study']}.svg)", ""]
    if shows_costs(facts):
        lines += ["## What it costs", "", f"![Accuracy and cost]({facts['study']}-cost.svg)", ""]
        lines += [_COSTS, ""]
    return "\n".join([*head, *lines, "## Details", "", *_how(facts), "", *_notes(facts)])


def shows_costs(facts: Mapping[str, Any]) -> bool:
    """Whether the page shows what the rows cost: if it tests DSKD, and their times are known.

    Args:
        facts: The results that ``evidence.study`` writes.
    """
    rows = [row for row in facts["rows"].values() if row["accuracies"]]
    return facts["first"] is not None and all(row.get("seconds") is not None for row in rows)


def first(facts: Mapping[str, Any], added: bool = False) -> str:
    """Says whether DSKD is first, in the protocol's sense of the word.

    Args:
        facts: The means of DSKD and of the best other method, and their difference.
        added: Whether the study departs from the protocol. Then the word "first" is not used.
    """
    text = (
        f"The best row of DSKD, `{facts['label']}`, has {facts['mean']:.2f} %. The best other "
        f"method, `{facts['second']}`, has {facts['second_mean']:.2f} %. The difference at the "
        f"same {facts['seeds']} seeds is {number(facts['gap'], facts['gap_half'], '+.2f')} points"
    )
    if facts["p_holm"] is not None:
        corrected = p_text(facts["p_holm"])
        text += f" (p: {p_text(facts['p'])}; after Holm's correction: {corrected})"
    required = facts.get("required_seeds", SEEDS_OF_FIRST)
    if facts["seeds"] < required:
        return f"{text}. The protocol requires {required} seeds for this test."
    found = verdict(facts)
    words = {"better": "DSKD is better", "worse": "DSKD is worse", "": "No difference is shown"}
    if added:
        return f"{text}. **{words[found]}**, in a study that is not part of the protocol."
    if not facts.get("decides", True):
        return f"{text}. **{words[found]}.**"
    return f"{text}. **DSKD is {'' if found == 'better' else 'not '}first.**"


def _not_compared(facts: Mapping[str, Any]) -> str:
    """Names the rows that the test leaves out, since not all of their runs have a result."""
    rows = [
        f"`{label}` ({count} result{'s' if count != 1 else ''})"
        for label, count in facts.get("incomplete", {}).items()
    ]
    return f" Not compared, because runs failed: {', '.join(rows)}." if rows else ""


def over(facts: Mapping[str, Any]) -> str:
    """A table of the differences of DSKD's best row from the other rows.

    Args:
        facts: The comparison of DSKD with the best other method.
    """
    gaps = sorted(facts["over"].items(), key=lambda gap: float(gap[1]["gap"]), reverse=True)
    rows = [f"| `{label}` | {number(gap['gap'], gap['gap_half'], '+.2f')} |" for label, gap in gaps]
    head = f"| compared with | difference of `{facts['label']}`, points, uncorrected |"
    if not all("p_holm" in gap for _, gap in gaps):
        return "\n".join([head, "|---|---:|", *rows])
    tested = [f"{row} {p_text(gap['p_holm'])} |" for row, (_, gap) in zip(rows, gaps, strict=True)]
    return "\n".join([f"{head} p (Holm, over these rows) |", "|---|---:|---:|", *tested])


def _how(facts: Mapping[str, Any]) -> list[str]:
    teacher, train = facts["teacher"], facts["recipe"]["train"]
    done, runs = facts["done"], facts["runs"]
    state = (
        f"All {runs} runs are finished."
        if done == runs
        else f"**Not finished**: {done} of {runs} runs are finished."
    )
    return [
        f"{_rules(facts)} The student is {facts['recipe']['student']['name']}, trained for "
        f"{train['epochs']} epochs. The teacher is {teacher['name']}, trained for "
        f"{teacher['epochs']} epochs{_start(teacher)}, with a test accuracy of "
        f"{teacher['test_accuracy']:.1f} %. "
        f"{_strength(facts)}"
        f"Accuracy is measured after the last epoch, on {facts['images']:,} test images. "
        f"{state}{_shared(facts)} Training the students took {facts['hours']:.1f} hours.",
        "",
        f"[{facts['study']}.json]({facts['study']}.json): {machine_line(facts)}{_names(facts)}",
        *_several_machines(facts),
    ]


def _several_machines(facts: Mapping[str, Any]) -> list[str]:
    """Says on which machines, and by which code, runs were computed, if it was not one."""
    computed = facts.get("computed", [])
    if len(computed) < 2 and all(len(one["parts"]) < 2 for one in computed):
        return []
    lines = ["", "The runs were not all computed in one place, or not all by the same code:", ""]
    for one in computed:
        lines.append(f"- {one['runs']}: {'; then '.join(map(_place, one['parts']))}")
    return lines


def _place(part: Mapping[str, Any]) -> str:
    """A machine, and the code there."""
    code = f"code {part['code']}" if part["code"] else "code not recorded"
    return f"{part['machine']}, threads: {part['threads']}, torch {part['torch']}, {code}"


def _start(teacher: Mapping[str, Any]) -> str:
    """Where the training of a teacher started, if not from random weights."""
    earlier = teacher.get("starts_from")
    return f" from the weights of the teacher of [{earlier}]({earlier}.md)" if earlier else ""


def _strength(facts: Mapping[str, Any]) -> str:
    """How far the teacher stands above KD's student, if the protocol sets an aim for it."""
    student = facts["rows"].get("kd", {}).get("mean")
    is_aimed = facts.get("protocol") == STRONG_TEACHERS and facts["split"] is not None
    if not is_aimed or facts["recipe"]["train"]["epochs"] < STUDENT_EPOCHS or student is None:
        return ""
    gap = facts["teacher"]["test_accuracy"] - student
    return (
        f"It stands {abs(gap):.1f} points {'above' if gap > 0 else 'below'} the student of `kd`. "
        f"This {'reaches' if gap >= AIM else 'does not reach'} the protocol's aim: {AIM} above it. "
    )


def _shared(facts: Mapping[str, Any]) -> str:
    """Says how many runs of the tables belong to other studies, if any."""
    rows = facts["rows"].values()
    further = sum(len(row["accuracies"]) + len(row["failed"]) for row in rows) - facts["done"]
    return f" The tables also show {further} runs of other studies." if further > 0 else ""


def _names(facts: Mapping[str, Any]) -> str:
    """Says that the settings in the JSON have names that were changed since, if so."""
    if "crop" not in facts["recipe"]["data"]:
        return ""
    return (
        " The recipe in the JSON has the names of settings of that commit; since then [some were "
        "renamed](README.md#renamed-settings)."
    )


def machine_line(facts: Mapping[str, Any]) -> str:
    """The command, commit, date and machine of a computation.

    Args:
        facts: The results of a study.
    """
    machine = facts["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    where = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return (
        f"`{facts['command']}` at commit {facts['commit']}, {facts['date']}; {where}, {threads}; "
        f"Python {machine['python']}, {packages}."
    )


def _rules(facts: Mapping[str, Any]) -> str:
    """Says which images the study uses, and whether it follows the protocol."""
    split = facts["split"]
    if split is None:
        changes = f" ({', '.join(facts['changes'])})" if facts["changes"] else ""
        return f"Data set: {facts['recipe']['data']['name']}{changes}."
    if facts["deviation"] or facts["changes"]:
        return f"The study uses the split `{split}`."
    rules = f"[protocol]({facts.get('protocol', 'protocol')}.md)"
    return f"The study follows the {rules}, on the split `{split}`."


def _table(facts: Mapping[str, Any], labels: list[str]) -> list[str]:
    lines = [
        f"| | accuracy of each seed, % | mean, % | difference from {facts['baseline']} | p (Holm) "
        "| agreement, % | extra parameters | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    means = {label: facts["rows"][label]["mean"] or 0.0 for label in labels}
    for label in sorted(labels, key=means.__getitem__, reverse=True):
        row = facts["rows"][label]
        each = ", ".join(
            [f"{value:.1f}" for value in row["accuracies"]] + ["failed"] * len(row["failed"])
        )
        agreement = "" if row["agreement"] is None else f"{row['agreement']:.1f}"
        p_holm = p_text(row["p_holm"])
        lines.append(
            f"| `{label}` | {each} | {number(row['mean'], row['half'])} "
            f"| {number(row['gap'], row['gap_half'], '+.2f')} | {p_holm} | {agreement} "
            f"| {_extra(row)} | {verdict(row)} |"
        )
    return lines


def _extra(row: Mapping[str, Any]) -> str:
    """The number of parameters that are trained and not deployed."""
    return "" if row["extra_parameters"] is None else f"{row['extra_parameters']:,}"


def _deployed(facts: Mapping[str, Any]) -> str:
    """Says how many parameters are deployed, and which methods deploy more."""
    deployed = {k: row["parameters"] for k, row in facts["rows"].items() if row["parameters"]}
    if not deployed:
        return ""
    usual = min(deployed.values())
    others = [f", {count:,} with `{label}`" for label, count in deployed.items() if count != usual]
    return f" The deployed student has {usual:,} parameters{''.join(others)}."


def _preset(facts: Mapping[str, Any]) -> str:
    """Says what a row is that has the preset's weight of the maps and the defaults' target."""
    if "dskd:beta=1" not in facts["rows"]:
        return ""
    return " `dskd:beta=1` is the preset `paper-abstract` with `feature_target=matched`."


def _failed(label: str, reasons: Mapping[Any, str]) -> str:
    """Which seeds of a row failed, and why, without the details in parentheses."""
    why = "; ".join(dict.fromkeys(text.partition(" (")[0] for text in reasons.values()))
    seeds = f"seed{'s' if len(reasons) > 1 else ''} {', '.join(map(str, reasons))}"
    return f"- `{label}` failed at {seeds}: {why}. The JSON has the whole messages."


def _notes(facts: Mapping[str, Any]) -> list[str]:
    errors = [row["sampling_error"] for row in facts["rows"].values() if row["sampling_error"]]
    failed = [
        _failed(label, row["failed"]) for label, row in facts["rows"].items() if row["failed"]
    ]
    same = [
        f"- `{label}` has no row: its settings are those of `{one}`."
        for label, one in facts["duplicates"].items()
    ]
    misfits = [
        f"- `{label}` has no row: it cannot be trained with this pair ({why})."
        for label, why in facts.get("left_out", {}).items()
    ]
    return [
        "± is the 95 % interval over seeds ([words](README.md#words)). The test images are a "
        f"sample, which adds about ± {max(errors, default=0):.1f} points (Wilson) to an accuracy. "
        "Differences are paired by seed, over the seeds that both rows have. *Better* and *worse* "
        f"hold for these images and this teacher.{_deployed(facts)}{_preset(facts)}",
        *(["", *failed] if failed else []),
        *(["", *same] if same else []),
        *(["", *misfits] if misfits else []),
        "",
    ]
