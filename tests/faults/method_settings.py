"""Invalid method settings: every key of every method misspelt, of a wrong type or left out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dskd import methods
from dskd.config.recipe import resolve
from tests.faults.outcomes import refusal

FAMILY = "invalid method settings"
STRIDE = 7
"""The test suite takes every 7th case: others for each key."""

_HUGE = -1e300
_WRONG: dict[str, Any] = {
    "a mapping": {1: [[]]},
    "a list of lists": [[[]]],
    "a date": date(2020, 1, 1),
    "bytes": b"\xff",
    "an object": object(),
    "infinite": float("inf"),
    "NaN": float("nan"),
}
_ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    10**400,
    0.5,
    "",
    "text",
    "0.5",
    [],
    {},
    ["a"],
    [1.0],
    "\x1b[2J",
    "a" * 9999,
)


class Case(NamedTuple):
    """The settings of a method.

    Attributes:
        settings: The settings, with the method's name.
        outcome: The expected outcome.
    """

    settings: dict[str, Any]
    outcome: Literal["resolved", "refused", "either"]


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """Every change to every key."""
    yield from islice(_all(), 0, None, 1 if whole else STRIDE)


def _all() -> Iterator[tuple[str, Case]]:
    for name in methods.names():
        valid = methods.resolve(name, {})
        for key in valid:
            without = {"name": name} | {k: v for k, v in valid.items() if k != key}
            where = f"{name}, {key}"
            yield f"{where} left out", Case(without, "resolved")
            for typo in (f"{key}_", key.upper(), f"{key[1:2]}{key[0]}{key[2:]}q"):
                yield f"{where} misspelt {typo}", Case(without | {typo: valid[key]}, "refused")
            for what, value in _WRONG.items():
                yield f"{where} is {what}", Case(without | {key: value}, "refused")
            for value in (_HUGE, *_ODD):
                yield f"{where} is {value!r:.20}", Case(without | {key: value}, "either")


def check(case: Case, folder: Path) -> str:
    """Resolves a recipe with these settings. A resolved recipe must resolve to itself."""
    values = {
        "data": {"name": "digits"},
        "student": {"name": "resnet8"},
        "teacher": {"name": "resnet20"},
        "method": case.settings,
    }
    line = refusal(lambda: _resolved(values, folder))
    outcome = "resolved" if line is None else "refused"
    assert case.outcome in (outcome, "either"), f"it was {outcome}: {line}"
    return outcome


def _resolved(values: dict[str, Any], folder: Path) -> None:
    plain = resolve(values, folder).plain()
    assert resolve(plain, folder).plain() == plain, "it resolves to another recipe"
