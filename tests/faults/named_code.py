"""Files that name code: a recipe, or a student's file, that would have a function of its own run.

``package.module:function`` is run only where the user asks for it with ``--allow-code``. All else
that a file may name is looked up in a list; nothing is imported because a file says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch

from dskd.config.recipe import load
from dskd.deploy.student import load_deployed
from dskd.engine import run
from tests.faults.outcomes import inside, refusal, tree

FAMILY = "code that files name"

CODE = "from pathlib import Path\nPath('mark').touch()\ndef make(**_): Path('mark').touch()\n"
NAMES = (
    "mark_module:make",
    "mark_module:",
    "mark_module:make:make",
    ":make",
    "mark_module",
    "mark_module.make",
    "../mark_module:make",
    "./mark_module.py:make",
    "timm/mark_module:make",
    "timm/../mark_module",
    "timm/hf-hub:somebody/model",
    "timm/local-dir:.",
    "os:system",
    "builtins:exec",
    "dskd.models.zoo:build",
    "..mark_module",
    "__init__",
    "base",
    "<mark_module>",
    "https://127.0.0.1:9/model",
    "file:///mark_module.py",
    "",
)
"""What a file may say in place of a name."""

OPTIONS = (
    "{checkpoint_path: weights.pth}",
    "{pretrained_cfg: {file: weights.pth}}",
    "{pretrained_cfg_overlay: {url: 'https://127.0.0.1:9/'}}",
    "{cache_dir: .}",
    "{block: 'mark_module:make'}",
)
"""Options of a timm model that would have it read other files, or that name code."""


def cases(whole: bool = True) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every place where a file names something, with every name; all of them either way."""
    for place in ("student.name", "teacher.name", "method.name", "data.name", "student's file"):
        for name in NAMES:
            yield f"{place}: {name}", (place, name)
    for options in OPTIONS:
        yield f"options: {options}", ("student.options", options)


def check(case: tuple[str, str], folder: Path) -> str:
    """Does what a user does with the file; nothing that it names is imported or run."""
    place, name = case
    (folder / "mark_module.py").write_text(CODE)
    (folder / "weights.pth").write_bytes(b"cos\nsystem\n(S'touch mark'\ntR.")
    if place == "student's file":
        _write_student(folder / "student.safetensors", name)
    else:
        (folder / "mine.yaml").write_text(_recipe(place, name))
    before, modules = tree(folder), {*sys.modules}
    sys.path.insert(0, str(folder))
    try:
        with inside(folder):
            line = refusal(lambda: _use(place))
    finally:
        sys.path.remove(str(folder))
    assert line is not None, "it was read"
    assert tree(folder) == before, "something ran or was written"
    assert not {"mark_module", "antigravity"} & {*sys.modules} - modules, "it was imported"
    a_function = name.count(":") == 1 and not name.startswith(("timm/", "http", "file"))
    if a_function and place in ("student.name", "teacher.name", "student's file"):
        assert "--allow-code" in line, f"it is not said how to allow it: {line}"
    return "refused"


def _use(place: str) -> None:
    if place == "student's file":
        load_deployed(".")
    else:
        run.distill(load("mine.yaml"))


def _recipe(place: str, name: str) -> str:
    given = {
        "data.name": "digits",
        "student.name": "timm/resnet10t" if place == "student.options" else "resnet8",
        "student.options": "{}",
        "teacher.name": "resnet8",
        "method.name": "kd",
    }
    given[place] = name if place == "student.options" else json.dumps(name)
    return (
        f"data: {{name: {given['data.name']}}}\n"
        f"student: {{name: {given['student.name']}, options: {given['student.options']}}}\n"
        f"teacher: {{name: {given['teacher.name']}}}\n"
        f"method: {{name: {given['method.name']}}}\n"
        "train: {epochs: 1}\nout: run\n"
    )


def _write_student(path: Path, model: str) -> None:
    facts = {
        "model": model,
        "options": {},
        "classes": ["a", "b"],
        "shape": [3, 8, 8],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "method": "ce",
        "addition": {},
    }
    data = safetensors.torch.save({"weight": torch.zeros(2)}, {"dskd": json.dumps(facts)})
    path.write_bytes(data)
