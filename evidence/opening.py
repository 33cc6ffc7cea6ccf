"""The opening of a page: the question, the answer, and how certain the answer is.

Certainties are computed from the JSON of the page. Answers too, unless ``findings.yaml`` has one in
words, and all of its numbers stand in the tables of the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dskd.storage.yaml_file import read_yaml_file
from evidence.numbers import number, p_equation, verdict

SEEDS_OF_FIRST = 5
"""Seeds that the protocol requires before it calls a method first."""
_FINDINGS = Path(__file__).parent / "findings.yaml"
_DECIMALS = re.compile(r"\d+\.\d+")
_NAMED = 4
"""Labels that a sentence names. More are counted."""


def opening(facts: Mapping[str, Any], tables: str) -> list[str]:
    """The opening of the page of a study.

    Args:
        facts: The results that ``evidence.study`` writes.
        tables: The tables of the page.
    """
    found = finding(facts["study"], tables) or answer(facts)
    return bullets(facts["question"], found, certainty(facts))


def finding(study: str, tables: str) -> str:
    """What a study found, in the words of ``findings.yaml``.

    Args:
        study: Its name.
        tables: The tables of its page.

    Returns:
        An empty text if there are no words, or if they have numbers that the tables do not have.
    """
    words = str(read_yaml_file(_FINDINGS, "findings").get(study, ""))
    return words if {*_DECIMALS.findall(words)} <= {*_DECIMALS.findall(tables)} else ""


def bullets(question: str | None, found: str, certain: str) -> list[str]:
    """Draws an opening in Markdown.

    Args:
        question: What was asked; None leaves it out.
        found: The answer.
        certain: How certain the answer is.
    """
    asked = [] if question is None else [f"- **Question:** {question}"]
    return [*asked, f"- **Answer:** {found}", f"- **Certainty:** {certain}"]


def answer(facts: Mapping[str, Any]) -> str:
    """The verdicts of the rows, the highest mean, and the test of DSKD, if the page has one.

    Args:
        facts: The results of a study.
    """
    if facts["done"] < facts["runs"]:
        return f"None yet. **Not finished**: {facts['done']} of {facts['runs']} runs are finished."
    rows = {label: row for label, row in facts["rows"].items() if row["accuracies"]}
    if not rows:
        return "All runs failed."
    if _most_seeds(rows) == 1:
        text = _range(facts, rows)
    else:
        text = f"{_verdicts(facts, rows)} {_highest(rows)}{_first(facts['first'])}"
    lost = [label for label in facts["rows"] if label not in rows]
    return text + (f" All runs of {_names(lost)} failed." if lost else "")


def certainty(facts: Mapping[str, Any]) -> str:
    """The seeds and tests of the rows, and whether the study follows the protocol.

    Args:
        facts: The results of a study.
    """
    rows = {label: row for label, row in facts["rows"].items() if row["accuracies"]}
    if _most_seeds(rows) <= 1:
        text = "One seed has no interval and no test, so this page ranks nothing."
    else:
        text = (
            f"{_seeds(rows)} and is compared with `{facts['baseline']}`; the p-values are "
            f"{_corrected(facts)}. With so few seeds, a difference that is not shown may still "
            "exist."
        )
    return text + outside_protocol(facts)


def outside_protocol(facts: Mapping[str, Any]) -> str:
    """Says that a study departs from the protocol, and how; empty if it does not.

    Args:
        facts: The results of a study.
    """
    deviations = [*([facts["deviation"]] if facts["deviation"] else []), *facts["changes"]]
    if facts["split"] is None or not deviations:
        return ""
    rules = f"[protocol]({facts.get('protocol', 'protocol')}.md)"
    return f" **This study is not part of the {rules}** ({', '.join(deviations)})."


def _most_seeds(rows: Mapping[str, Mapping[str, Any]]) -> int:
    return max((len(row["accuracies"]) for row in rows.values()), default=0)


def _range(facts: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The lowest and the highest accuracy of a study with one seed."""
    low, high = (pick(rows, key=lambda label: rows[label]["mean"]) for pick in (min, max))
    return (
        f"All {facts['runs']} runs are finished; the accuracies go from {rows[low]['mean']:.2f} % "
        f"(`{low}`) to {rows[high]['mean']:.2f} % (`{high}`)."
    )


def _verdicts(facts: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Which rows are better or worse than the baseline."""
    tested = {label: verdict(row) for label, row in rows.items() if row["p_holm"] is not None}
    baseline = f"`{facts['baseline']}`"

    def order(label: str) -> float:
        return -float(rows[label]["mean"])

    parts = [
        f"{word}: {_names(labels)}."
        for word, found in ((f"Better than {baseline}", "better"), ("Worse", "worse"))
        if (labels := sorted((k for k, one in tested.items() if one == found), key=order))
    ]
    rest = sum(not found for found in tested.values())
    if not tested:
        return f"No row is tested against {baseline}."
    if not parts:
        return f"None of the {rest} tested rows is shown to differ from {baseline}."
    if not parts[0].startswith("Better"):
        parts[0] = parts[0].replace("Worse", f"Worse than {baseline}")
    if rest:
        others = "the other tested row" if rest == 1 else f"the other {rest} tested rows"
        parts.append(f"No difference is shown for {others}.")
    return " ".join(parts)


def _highest(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The row with the highest mean, among those with several seeds."""
    several = [label for label, row in rows.items() if len(row["accuracies"]) > 1]
    best = max(several, key=lambda label: float(rows[label]["mean"]))
    row = rows[best]
    text = f"The highest mean is {row['mean']:.2f} % (`{best}`"
    if row["p_holm"] is not None:
        gap = number(row["gap"], row["gap_half"], "+.2f")
        text += f"; difference: {gap} points, {p_equation(row['p_holm'])}"
    return f"{text})."


def _first(found: Mapping[str, Any] | None) -> str:
    """The test of DSKD against the best other method."""
    if found is None or found["p_holm"] is None:
        return ""
    if found["seeds"] < found.get("required_seeds", SEEDS_OF_FIRST):
        return ""
    words = {
        "better": "is better than",
        "worse": "is worse than",
        "": "is not shown to differ from",
    }
    gap = number(found["gap"], found["gap_half"], "+.2f")
    return (
        f" DSKD's best row, `{found['label']}`, {words[verdict(found)]} the best row of the other "
        f"methods, `{found['second']}` ({gap} points, {p_equation(found['p_holm'])})."
    )


def _seeds(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How many seeds the tested rows have, and how many rows are not tested."""
    counts = [len(row["accuracies"]) for row in rows.values()]
    several = sorted({count for count in counts if count > 1})
    text = f"has {' or '.join(map(str, several))} seeds"
    alone = counts.count(1)
    if not alone:
        return f"Each row {text}"
    untested = (
        "1 row has one seed and no test"
        if alone == 1
        else (f"{alone} rows have one seed and no test")
    )
    return f"{untested}; each other row {text}"


def _corrected(facts: Mapping[str, Any]) -> str:
    """The p-values that Holm's correction of the page covers."""
    found, baseline = facts["first"], facts["baseline"]
    rows = sum(row["p"] is not None for row in facts["rows"].values())
    gaps = found.get("over", {}).values() if found is not None else ()
    if gaps and all("p_holm" in gap for gap in gaps):
        return (
            f"corrected for all {rows} comparisons with `{baseline}` (Holm); the test of DSKD's "
            f"best row, for its differences from the {len(gaps)} other rows with as many seeds"
        )
    if found is None or found["p"] is None or found["second"] == baseline:
        return f"corrected for all {rows} comparisons of the page (Holm)"
    return (
        f"corrected for all {rows + 1} comparisons of the page (Holm): {rows} with `{baseline}`, "
        "and one of DSKD's best row with the best row of the other methods"
    )


def _names(labels: Sequence[str]) -> str:
    """The labels in a sentence, or their number if they are many."""
    if len(labels) > _NAMED:
        return f"{len(labels)} rows"
    *others, last = [f"`{label}`" for label in labels]
    return f"{', '.join(others)} and {last}" if others else last
