"""Help and lists answer without torch, which takes seconds to import."""

from __future__ import annotations

import inspect
import json
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
import json, os, sys
from dskd.cli.commands import main

def call(arguments):
    try:
        main(arguments)
    except SystemExit as ended:
        slow = {"torch", "timm", "torchvision"} & sys.modules.keys()
        return f"imported {slow}" if slow else ended.code or 0
    except BaseException as error:
        return repr(error)

for arguments in json.loads(sys.argv[1]):
    sys.stdout.flush()
    receive, send = os.pipe()
    if os.fork() == 0:
        os.write(send, json.dumps(call(arguments)).encode())
        os._exit(0)
    os.close(send)
    os.wait()
    print("ended", os.read(receive, 1000).decode(), flush=True)
"""
"""Calls each command in a process of its own, forked from one that has imported their names."""


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", script, *arguments]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ended() -> list[object]:
    """How each of the commands ended."""
    done = python(SCRIPT, json.dumps(COMMANDS))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return [
        json.loads(line.removeprefix("ended "))
        for line in done.stdout.splitlines()
        if line.startswith("ended ")
    ]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_that_compute_nothing_do_not_import_torch(
    arguments: list[str], ended: list[object]
) -> None:
    assert len(ended) == len(COMMANDS)
    assert ended[COMMANDS.index(arguments)] == (2 if arguments == ["trian"] else 0)


@pytest.fixture(scope="module")
def imported() -> subprocess.CompletedProcess[str]:
    """A process that imports the package; then all of it anew, but for torch."""
    return python("""
import os, sys, dskd
assert "torch" not in sys.modules
assert dskd.InputError and dskd.Stopped and dskd.__version__
assert "torch" not in sys.modules
from dskd import distill
assert "torch" in sys.modules and dskd.distill is distill
print("torch came with a name", flush=True)
for name in [name for name in sys.modules if name.partition(".")[0] == "dskd"]:
    del sys.modules[name]
import dskd
assert dskd.distill is not distill
[getattr(dskd, name) for name in dskd.__all__]
from dskd import *
print("all names are there", flush=True)
os._exit(0)  # to undo all imports takes a second
""")


@pytest.mark.slow
def test_the_package_imports_torch_when_a_name_needs_it(
    imported: subprocess.CompletedProcess[str],
) -> None:
    assert "torch came with a name\n" in imported.stdout, imported.stderr


@pytest.mark.slow
def test_the_package_has_the_names_that_it_lists(
    imported: subprocess.CompletedProcess[str],
) -> None:
    assert imported.stdout.endswith("all names are there\n"), imported.stderr
    assert imported.returncode == 0, imported.stderr
    assert dir(dskd) == sorted(dskd.__all__)
    with pytest.raises(AttributeError, match="module 'dskd' has no attribute 'nothing'"):
        dskd.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_summary_is_the_first_line_of_the_docstring() -> None:
    for name in methods.names():
        documentation = inspect.getdoc(methods.find(name)) or ""
        assert methods.summary(name) == documentation.splitlines()[0]
