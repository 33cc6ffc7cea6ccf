"""``dskd.losses.NAME`` is the loss of the method NAME, found in the method's file."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dskd
from dskd import losses, methods


@pytest.mark.parametrize("name", methods.names())
def test_the_loss_of_a_method_is_the_function_in_its_file(name: str) -> None:
    module = sys.modules[methods.find(name).__module__]
    assert getattr(dskd.losses, name) is getattr(module, f"{name}_loss")
    assert name in dir(losses)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'dskd.losses' has no attribute 'atd'"):
        losses.atd  # noqa: B018
    assert not hasattr(losses, "base")


FIRST = """
import os, torch
for name in ("at", "dskd", "simkd"):
    process = os.fork()
    if process == 0:
        exec(f"from dskd.losses import {name}; from dskd.methods.{name} import {name}_loss as loss")
        os._exit(0 if globals()[name] is loss else 1)
    assert os.waitpid(process, 0)[1] == 0, name
"""


@pytest.mark.slow
def test_a_loss_can_be_imported_first() -> None:
    """Whichever of the two packages is imported first."""
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
