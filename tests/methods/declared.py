"""What the test file of a method, ``tests/methods/test_NAME.py``, declares for the general tests.

- ``ARGUMENTS``: the arguments of the loss, as a `tests.losses.misfits.Arguments`. The general tests
  call the loss with arguments that fit, and with random changes after which they do not.
- ``PRESETS``: the presets of the method, as numbers. They are published values: a change of the
  code must not change them unnoticed. Left out if the method has none.
- ``DEFAULTS``: the loss's optional arguments and their defaults; left out if there are none.
- ``SMALL``: settings with which the method trains on a few images in seconds; left out if its
  defaults do.
- ``GENTLE``: settings with which ten steps on a few images lower the loss, for a method whose
  published weights belong to larger images and longer training; left out otherwise.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.losses.misfits import Arguments


def declared(name: str, constant: str) -> Any:
    """A constant of the test file of a method; None if the file does not define it.

    Args:
        name: The method.
        constant: The name of the constant.
    """
    path = f"tests/methods/test_{name}.py"
    if not Path(__file__).with_name(f"test_{name}.py").exists():
        pytest.fail(f"the method {name} has no tests: write {path} (see CONTRIBUTING.md)")
    return getattr(importlib.import_module(f"tests.methods.test_{name}"), constant, None)


def arguments(name: str) -> Arguments:
    """The arguments of the loss of a method."""
    found = declared(name, "ARGUMENTS")
    if not isinstance(found, Arguments):
        pytest.fail(
            f"tests/methods/test_{name}.py must define ARGUMENTS, the arguments of {name}_loss: "
            'for example ARGUMENTS = Arguments({"student_logits": "B K", "teacher_logits": "B K"}) '
            "(see tests/losses/misfits.py)"
        )
    return found


def presets(name: str) -> dict[str, dict[str, Any]]:
    """The presets that a method must have; none if the file does not list any."""
    return declared(name, "PRESETS") or {}


def defaults(name: str) -> dict[str, Any]:
    """The defaults of the loss's optional arguments."""
    return declared(name, "DEFAULTS") or {}


def small(name: str) -> dict[str, Any]:
    """Settings with which a method trains on a few images in seconds."""
    return declared(name, "SMALL") or {}


def gentle(name: str) -> dict[str, Any]:
    """Settings with which ten steps on a few images lower the loss."""
    return declared(name, "GENTLE") or {}
