"""What was wanted of a GPU, and what was found of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpu_bench import Found

REFERENCE = "measure: the reference"
BFLOAT16 = "measure: steps in bfloat16"
KEPT = "measure: steps from cached outputs"
EIGHT = "measure: eight students"
ONLINE_RUN = "measure: 240 epochs"
KEPT_RUN = "measure: 240 epochs from cached outputs"


class Aim(NamedTuple):
    """Something to reach.

    Attributes:
        what: In words, with its unit.
        wanted: The number.
        least: Whether it is wanted at least, or at most.
        found: What the parts say of it; None where they do not.
        run: The part that may have been too short for the whole of it.
    """

    what: str
    wanted: float
    least: bool
    found: Callable[[Found], float | None]
    run: str | None = None


def seconds_of(parts: Found, part: str, *names: str) -> float | None:
    """The least seconds of the rows whose name begins with one of these."""
    rows = parts.get(part, {}).items()
    found = [row["seconds"] for name, row in rows if name.startswith(names)]
    return min(found, default=None)


def _over_reference(reference: str, part: str) -> Callable[[Found], float | None]:
    def found(parts: Found) -> float | None:
        theirs = seconds_of(parts, REFERENCE, reference)
        ours = seconds_of(parts, part, "kd,")
        return theirs / ours if theirs and ours else None

    return found


def _of_a_run(part: str) -> Callable[[Found], float | None]:
    return lambda parts: parts.get(part, {}).get("seconds")


def _each_of_eight(parts: Found) -> float | None:
    together = seconds_of(parts, EIGHT, "eight kd")
    alone = seconds_of(parts, EIGHT, "eight plain")
    return together / alone if together and alone else None


AIMS = (
    Aim("KD steps in one of the reference's", 10, True, _over_reference("kd, 2 w", BFLOAT16)),
    Aim(
        "KD steps in one of the reference's with 8 pinned workers",
        *(5, True, _over_reference("kd, 8 w", BFLOAT16)),
    ),
    Aim(
        "KD steps from kept logits in one of the reference's",
        *(10, True, _over_reference("kd, 2 w", KEPT)),
    ),
    Aim("seconds of 240 epochs of KD", 150, False, _of_a_run(ONLINE_RUN), ONLINE_RUN),
    Aim(
        "seconds of 240 epochs of KD from cached outputs", 90, False, _of_a_run(KEPT_RUN), KEPT_RUN
    ),
    Aim("steps of the plain student in one of eight KD students", 1, False, _each_of_eight),
)


def reached(parts: Found) -> list[Found]:
    """Each aim that the parts say something of."""
    rows = []
    for aim in AIMS:
        if (value := aim.found(parts)) is None:
            continue
        row = {"what": aim.what, "wanted": aim.wanted, "found": value}
        row["holds"] = value >= aim.wanted if aim.least else value <= aim.wanted
        row["extrapolated"] = aim.run is not None and parts[aim.run]["extrapolated"]
        rows.append(row)
    return rows


def line(row: Found) -> str:
    """An aim, for a person.

    Example:
        >>> row = {"what": "steps", "wanted": 10, "found": 12.3456, "holds": True}
        >>> line(row | {"extrapolated": False})
        'steps: 12.3 (wanted: 10), reached'
    """
    how = "reached" if row["holds"] else "not reached"
    more = ", extrapolated" if row["extrapolated"] else ""
    return f"{row['what']}: {row['found']:.3g} (wanted: {row['wanted']}), {how}{more}"
