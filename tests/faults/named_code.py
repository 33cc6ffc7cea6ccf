"""Files that name code: a recipe or a student's file that tries to run a function of its own.

``package.module:function`` is run only if the user passes ``--allow-code``. All other names in a
file are looked up in a list, and nothing is imported because a file names it.
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

FAMILY = "code named in files"

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
    "hf/somebody/model",
    "hf/.",
    "transformers/mark_module:make",
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
"""Names that a file may contain."""

OPTIONS = (
    "{checkpoint_path: weights.pth}",
    "{pretrained_cfg: {file: weights.pth}}",
    "{pretrained_cfg_overlay: {url: 'https://127.0.0.1:9/'}}",
    "{cache_dir: .}",
    "{block: 'mark_module:make'}",
)
"""Options of a timm model that read other files or name code."""


def cases(whole: bool = True) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every place for a name in a file, with every name. ``whole`` makes no difference."""
    for place in ("student.name", "teacher.name", "method.name", "data.name", "student's file"):
        for name in NAMES:
            yield f"{place}: {name}", (place, name)
    for options in OPTIONS:
        yield f"options: {options}", ("student.options", options)


def check(case: tuple[str, str], folder: Path) -> str:
    """Uses the file and checks that nothing it names is imported or run."""
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
    assert line is not None, "the file was accepted"
    assert tree(folder) == before, "code ran or a file was written"
    assert not {"mark_module", "antigravity"} & {*sys.modules} - modules, "a module was imported"
    a_function = name.count(":") == 1 and not name.startswith(
        ("timm/", "transformers/", "http", "file")
    )
    if a_function and place in ("student.name", "teacher.name", "student's file"):
        assert "allow_code=True" in line, f"the message does not name the option: {line}"
    return "refused"


def _use(place: str) -> None:
    if place == "student's file":
        load_deployed(".")
    else:
        run.distill(load("mine.yaml"))


def _recipe(place: str, name: str) -> str:
    values = {
        "data.name": "digits",
        "student.name": "timm/resnet10t" if place == "student.options" else "resnet8",
        "student.options": "{}",
        "teacher.name": "resnet8",
        "method.name": "kd",
    }
    values[place] = name if place == "student.options" else json.dumps(name)
    return (
        f"data: {{name: {values['data.name']}}}\n"
        f"student: {{name: {values['student.name']}, options: {values['student.options']}}}\n"
        f"teacher: {{name: {values['teacher.name']}}}\n"
        f"method: {{name: {values['method.name']}}}\n"
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
        "deploy_config": {},
    }
    data = safetensors.torch.save({"weight": torch.zeros(2)}, {"dskd": json.dumps(facts)})
    path.write_bytes(data)
