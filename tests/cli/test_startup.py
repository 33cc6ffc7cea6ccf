"""Help and lists answer without torch, which takes seconds to import."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import dskd
from dskd import methods
from dskd.cli.commands import cli
from dskd.cli.listing import LISTS

COMMANDS = [
    ["--version"],
    ["--help"],
    *([verb, "--help"] for verb in cli.commands),
    *(["list", what] for what in LISTS),
    ["trian"],
]

SCRIPT = """
import sys
from dskd.cli.commands import main
try:
    main(sys.argv[1:])
finally:
    assert not {"torch", "timm", "torchvision"} & sys.modules.keys(), "a slow import"
"""


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", script, *arguments]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_that_compute_nothing_do_not_import_torch(arguments: list[str]) -> None:
    done = python(SCRIPT, *arguments)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (2 if arguments == ["trian"] else 0)


@pytest.mark.slow
def test_the_package_imports_torch_when_a_name_needs_it() -> None:
    script = """
import sys, dskd
assert "torch" not in sys.modules
assert dskd.InputError and dskd.Stopped and dskd.__version__
assert "torch" not in sys.modules
from dskd import distill
assert "torch" in sys.modules and dskd.distill is distill
"""
    done = python(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_package_has_the_names_that_it_lists() -> None:
    script = "import dskd; [getattr(dskd, name) for name in dskd.__all__]; from dskd import *"
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert dir(dskd) == sorted(dskd.__all__)
    with pytest.raises(AttributeError, match="module 'dskd' has no attribute 'nothing'"):
        dskd.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_summary_is_the_first_line_of_the_docstring() -> None:
    for name in methods.names():
        documentation = inspect.getdoc(methods.find(name)) or ""
        assert methods.summary(name) == documentation.splitlines()[0]
