"""Values and gradients of the reference implementations, and the inputs that they got."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FACTS = Path(__file__).parent / "facts"
FILES = ("losses", "losses2")
CASES: dict[str, Any] = {
    case: fact
    for name in FILES
    for case, fact in json.loads((FACTS / f"{name}.json").read_text())["cases"].items()
}


@functools.cache
def _arrays() -> dict[str, np.ndarray[Any, Any]]:
    """The standard inputs, drawn again from their seed, and the stored ones."""
    draw = np.random.RandomState(20231)
    arrays: dict[str, Any] = {
        "logits_s": draw.randn(32, 100) * 3,
        "logits_t": draw.randn(32, 100) * 3,
        "labels": draw.randint(0, 100, 32),
    }
    for name, (channels, size) in {
        "f1": (16, 16),
        "f2": (32, 8),
        "f3": (64, 8),
        "g1": (32, 16),
        "g2": (64, 8),
        "g3": (64, 8),
    }.items():
        arrays[f"{name}_pre"] = draw.randn(32, channels, size, size)
        arrays[name] = np.maximum(arrays[f"{name}_pre"], 0)
    arrays["s"], arrays["t"] = draw.randn(32, 64), draw.randn(32, 128)
    rounded = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    for file in FILES:
        with np.load(FACTS / f"{file}.npz") as stored:
            rounded |= {name.removeprefix("in/"): stored[name] for name in stored.files}
    return rounded


EDGES: dict[str, Any] = json.loads((FACTS / "losses.json").read_text())["edges"]
"""What mdistiller's kd and dkd give in float32 for the standard logits times a factor."""


def cases(prefix: str) -> set[str]:
    """The names of the cases that begin with this word."""
    return {case for case in CASES if case.split("_")[0] == prefix}


SCALED: dict[str, dict[str, float]] = json.loads((FACTS / "losses2.json").read_text())["scaled"]
"""Values of some cases with the logits of student and teacher multiplied by a number."""


def given(name: str) -> Tensor:
    """An input by its name in the facts, float64 (or int64); a leaf with a gradient."""
    tensor = torch.from_numpy(_arrays()[name].copy())
    return tensor.double().requires_grad_() if tensor.is_floating_point() else tensor.long()


def parameters(case: str) -> dict[str, Tensor]:
    """The weights of a case by their names in the facts, float64."""
    prefix = f"param/{case}/"
    return {
        name.removeprefix(prefix): torch.from_numpy(array).double()
        for name, array in _arrays().items()
        if name.startswith(prefix)
    }


def check(case: str, loss: Callable[..., Tensor], names: Sequence[str] | None = None) -> None:
    """A loss has the value (to 1e-5) and the gradients (to 1e-4) of a case.

    Args:
        case: The name of the case in the facts.
        loss: Takes the inputs of the case, in the order student, teacher, other.
        names: The inputs that the loss takes; None for all.
    """
    fact = CASES[case]
    roles = ("student", "teacher", "other")
    names = names or [name for role in roles for name in fact["inputs"][role]]
    inputs = {name: given(name) for name in names}
    value = loss(*inputs.values())
    assert value.dim() == 0
    assert value.item() == pytest.approx(fact["value"], rel=1e-5)
    leaves = [inputs[name] for name in fact["gradients"]]
    gradients = torch.autograd.grad(value, leaves) if leaves else ()
    for expected, gradient in zip(fact["gradients"].values(), gradients, strict=True):
        assert gradient.norm().item() == pytest.approx(expected["norm"], rel=1e-4)
        first = torch.tensor(expected["first16"], dtype=torch.float64)
        scale = gradient.abs().max().item()
        torch.testing.assert_close(gradient.flatten()[:16], first, rtol=1e-4, atol=1e-6 * scale)


def check_scaled(case: str, loss: Callable[..., Tensor]) -> None:
    """A loss of the standard logits (and labels) has the values of `SCALED`, and is finite."""
    for factor, expected in SCALED[case].items():
        student = (float(factor) * given("logits_s").detach()).requires_grad_()
        value = loss(student, float(factor) * given("logits_t").detach(), given("labels"))
        assert value.item() == pytest.approx(expected, rel=1e-5)
        (gradient,) = torch.autograd.grad(value, student)
        assert gradient.isfinite().all()
