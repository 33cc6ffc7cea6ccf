"""The section of a model card about early exits, and its tables."""

from __future__ import annotations

from collections.abc import Sequence

from dskd.deploy.input_contract import InputContract


def exits_section(contract: InputContract) -> list[str]:
    """The section about early exits; none for a plain student."""
    exits = contract.exits
    if exits is None:
        return []
    facts, policy = exits.facts, exits.policy
    rows = [
        [
            f"{place}",
            exits.names[number],
            f"{policy.thresholds[number]:.4f}",
            f"{facts.exits[number].temperature:.3f}",
            f"{exits.costs.paths(policy.thresholds)[number]:,}",
        ]
        for place, number in enumerate(exits.running)
    ]
    last = f"{exits.costs.paths(policy.thresholds)[-1]:,}"
    rows.append([f"{len(exits.running)}", "student", "-", "-", last])
    listed = table(["exit", "after", "threshold", "temperature", "multiply-adds"], rows)
    return [
        "## Early exits",
        "The file predicts at the first exit whose confidence, the largest softmax of its logits, "
        "is at least its threshold. The layers after it do not run. A second output, `exit`, is "
        "the number of the exit.",
        listed,
        f"The thresholds are the cheapest that lose at most {exits.max_loss:g} percentage points "
        f"on {facts.val_images:,} validation images: there the accuracy is "
        f"{policy.val_accuracy:.2f} % with {policy.multiply_adds:,.0f} multiply-adds on average, "
        f"and {facts.policies[0].val_accuracy:.2f} % with {facts.multiply_adds:,} for the plain "
        "student.",
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
