"""Every case of the facts is compared with a loss, or named with the reason why not."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import tests.losses
import tests.methods
from dskd.losses import dkd, kd
from tests.reference_values import CASES, EDGES, given

NOT_COMPARED = {
    "at_torchdistill_paper": "the norm of the paper's equation, to which no published weight "
    "belongs; test_at.py computes its value from our attention maps",
    "sp_torchdistill": "rows with an absolute sum of 1, which is not the paper's; test_sp.py "
    "computes its value from the similarities",
}
"""The cases that differ from our loss, and why."""


def modules() -> list[ModuleType]:
    """The modules that test losses and methods."""
    return [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for package in (tests.losses, tests.methods)
        for module in pkgutil.iter_modules(package.__path__)
        if module.name.startswith("test_")
    ]


def calls(test: Callable[..., None]) -> list[dict[str, Any]]:
    """The arguments with which pytest calls a test that has at most one parameter."""
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            name, values = mark.args
            return [{name: value} for value in values]
    return [{}]


def compared(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The cases that the tests of a module give to `check`, found by calling these tests."""

    found: set[str] = set()
    monkeypatch.setattr(module, "check", lambda case, *_: found.add(case))
    for _, test in inspect.getmembers(module, inspect.isfunction):
        if test.__name__.startswith("test_") and "check" in test.__code__.co_names:
            for arguments in calls(test):
                # Without the comparison, what a test says about it afterwards is not so.
                with contextlib.suppress(AssertionError):
                    test(**arguments)
    return found


def test_every_case_is_compared_or_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [compared(module, monkeypatch) for module in modules() if hasattr(module, "check")]
    assert set().union(*found) | NOT_COMPARED.keys() == CASES.keys()
    assert not set().union(*found) & NOT_COMPARED.keys()


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(("name", "loss"), [("kd", kd), ("dkd", dkd)])
def test_large_logits_have_the_values_of_the_reference_where_it_has_any(
    name: str, loss: Callable[..., torch.Tensor], edge: str
) -> None:
    """The reference's dkd overflows from the factor 30 on; ours stays finite."""
    factor = float(edge.removeprefix("logits_x"))
    logits = [factor * given(side).detach().float() for side in ("logits_s", "logits_t")]
    value = loss(*logits, *[given("labels")] * (name == "dkd")).item()
    expected = float(EDGES[edge][name]["value"])
    assert value == pytest.approx(expected if abs(expected) < 1e30 else value, rel=1e-5)
    assert 0 < value < 1e6
