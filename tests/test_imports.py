"""The layout: few parts, small modules, and imports that go one way."""

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
    ["api", "testing"],
    ["cli"],
    ["__main__", "__init__"],
]
"""From the ground up: a part imports from its own package and from layers below."""

SUPPORT = {"__init__", "__main__", "version", "errors", "settings", "testing"}
"""Modules next to the parts that a newcomer need not open."""

LOOKUP = ("losses/__init__.py", "methods")
"""The one import upward. `dskd.losses` looks a method's loss up in its file, inside a function."""

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


def test_a_newcomer_sees_fourteen_parts() -> None:
    entries = {path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert len(entries - {f"{name}.py" for name in SUPPORT} - {"py.typed"}) <= 14


def lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_modules_classes_and_functions_are_small() -> None:
    large = []
    for path in sorted(ROOT.rglob("*.py")):
        text, name = path.read_text(), path.relative_to(ROOT)
        count = len(text.splitlines())
        if count > 350:
            large.append(f"{name}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and lines(node) > 200:
                large.append(f"{name}: class {node.name}, {lines(node)} lines")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines(node) > 60:
                large.append(f"{name}: function {node.name}, {lines(node)} lines")
    assert not large


@pytest.mark.slow
def test_imports_go_downward_only() -> None:
    upward = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in ROOT.rglob("*.py")
        for other in imported(path)
        if other != part_of(path) and LEVEL[other] >= LEVEL[part_of(path)]
        if (path.relative_to(ROOT).as_posix(), other) != LOOKUP
    ]
    assert not upward


def test_models_and_data_use_nothing_but_their_own() -> None:
    for path in ROOT.glob("models/*.py"):
        assert imported(path) <= {"models", "errors", "storage"}, path
    for path in ROOT.glob("data/*.py"):
        assert imported(path) <= {"data", "errors", "storage", "runtime"}, path


@pytest.mark.parametrize("module", ["dskd.data.catalog", "dskd.models.catalog", "dskd.methods"])
def test_a_catalog_imports_without_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {path.stem for path in ROOT.rglob("*.py")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


@pytest.mark.slow
def test_torchvision_and_timm_are_imported_only_for_their_models() -> None:
    code = (
        "import os, sys, dskd, dskd.cli.commands; dskd.load_model('resnet8', num_classes=3)\n"
        "assert not {'timm', 'torchvision', 'torch_geometric'} & sys.modules.keys()\n"
        "dskd.load_model('timm/test_resnet', num_classes=3); assert 'timm' in sys.modules\n"
        "os._exit(0)"  # to undo all imports takes a second
    )
    subprocess.run([sys.executable, "-c", code], check=True)
