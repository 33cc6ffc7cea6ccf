"""Imports go one way: what a module may use is below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dskd

ROOT = Path(dskd.__file__).parent

LAYERS = [
    ["errors", "version"],
    ["settings"],
    ["runtime"],
    ["storage"],
    ["data", "models"],
    ["losses"],
    ["methods"],
    ["teacher"],
    ["config"],
    ["engine"],
    ["deploy", "compare"],
    ["report"],
    ["api"],
    ["cli"],
    ["__main__", "__init__"],
]
"""From the ground up: a part imports from its own package and from layers below."""

LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "dskd":
            parts |= {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dskd."):
            parts.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            parts |= {a.name.split(".")[1] for a in node.names if a.name.startswith("dskd.")}
    return parts


def test_every_part_has_its_layer() -> None:
    assert {part_of(path) for path in ROOT.rglob("*.py")} == set(LEVEL)


def test_imports_go_downward_only() -> None:
    upward = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in ROOT.rglob("*.py")
        for other in imported(path)
        if other != part_of(path) and LEVEL[other] >= LEVEL[part_of(path)]
    ]
    assert not upward


def test_models_and_data_use_nothing_but_their_own() -> None:
    for path in ROOT.glob("models/*.py"):
        assert imported(path) <= {"models", "errors", "storage"}, path
    for path in ROOT.glob("data/*.py"):
        assert imported(path) <= {"data", "errors", "storage", "runtime"}, path


@pytest.mark.parametrize("module", ["dskd.data.catalog", "dskd.models.catalog"])
def test_a_catalog_imports_without_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {path.stem for path in ROOT.rglob("*.py")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


def test_the_core_imports_without_torchvision_and_timm() -> None:
    code = (
        "import sys; sys.modules['timm'] = None; sys.modules['torchvision'] = None\n"
        "import dskd, dskd.cli.commands; dskd.load_model('resnet8', num_classes=3)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
