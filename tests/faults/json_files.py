"""Malicious JSON in a student's file, in a run's folder and in a comparison's folder.

A student classifies an image; a report is made of a run or of a comparison. Whatever the JSON says,
it is used or refused in one line.
"""

from __future__ import annotations

import copy
import functools
import json
import operator
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from PIL import Image

from dskd.compare.grid import load_plan
from dskd.compare.progress import live_table
from dskd.compare.reader import read_comparison
from dskd.compare.runner import run_grid
from dskd.compare.summary import summarize
from dskd.compare.table import notes, summary_table
from dskd.config import recipe
from dskd.deploy import latency
from dskd.deploy.predict import predict
from dskd.deploy.student import load_deployed
from dskd.engine import run
from dskd.report.build import make_report
from dskd.report.collect import collect
from tests.faults.outcomes import refusal

FAMILY = "malicious JSON"
STRIDE = 11
"""The test suite takes every 11th case, a different one for each key."""

STUDENT = "student.safetensors"
SMALL = ("data.fraction=0.02", "train.epochs=1", "student.name=resnet8")
READ = (STUDENT, "recipe.yaml", "result.json", "environment.json", "metrics.jsonl")
"""The files of a run that are read later."""
COMPARISON = "comparison.json"
NESTED = (
    *("variants.0.label", "variants.0.folder", "variants.0.method"),
    "variants.0.method.temperature",
)

TEXTS = {
    "an empty file": "",
    "half an object": '{"model": "resn',
    "null": "null",
    "a number": "5",
    "text": '"model"',
    "a list": "[]",
    "an empty object": "{}",
    "deep lists": "[" * 100_000,
    "deep lists, closed": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "a number of 5,000 digits": "9" * 5000,
    "not text": "\udcff\udcfe",
    "a null byte": '{"a\0": 1}',
}
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 10**30, 10**999, 1.5, float("nan"), float("inf"), -1e300),
    *("", "x", "\x1b[2J", "\ud800", "a" * 10**6, "../../x", "os:system", "{{ 7 * 7 }}"),
    *([], [1], [[]], ["a"] * 3, [0, 0, 0], [-3, 8, 8], [3, 0, 8], [3, 8, 9], [3, 8, 8, 8]),
    *([10**9, 8, 8], [3, 10**9, 10**9], [3, 16_000, 16_000], [1, 8, 8], [0.5] * 4, [1e-320] * 3),
    *([float("nan")] * 3, ["x"] * 10**5, {}, {"a": 1}, {"stages": ["layer1"]}, [{"a": []}]),
)
"""Values in place of a valid one."""

LARGE_MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("vit_tiny_patch16_224", {"depth": 900}),
    ("vit_tiny_patch16_224", {"depth": 10**9}),
    ("vit_tiny_patch16_224", {"img_size": 4096, "patch_size": 1}),
    ("vit_tiny_patch16_224", {"embed_dim": 49_152}),
    ("swin_tiny_patch4_window7_224", {"depths": [65_000] * 4}),
    ("swin_tiny_patch4_window7_224", {"window_size": 60_000}),
    ("resnet10t", {"block_args": {"reduce_first": 10**6}}),
)
"""Large models of timm that a student's file may name with a few bytes of options."""


class Case(NamedTuple):
    """A file of a run or comparison with changed content.

    Attributes:
        file: Name of the file.
        key: The dotted key that is changed; empty to replace the whole text.
        value: The new value, or the new text.
    """

    file: str
    key: str
    value: Any


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """Every file with every text, and every key with every value."""
    yield from islice(_all(), 0, None, 1 if whole else STRIDE)


def _all() -> Iterator[tuple[str, Case]]:
    for model, options in LARGE_MODELS:
        values = {**_values(STUDENT), "model": f"timm/{model}", "options": options}
        yield f"{STUDENT}: {model} {options}", Case(STUDENT, "", json.dumps(values))
    for file in (*READ, COMPARISON):
        for name, text in TEXTS.items():
            yield f"{file}: {name}", Case(file, "", text)
    for file in (STUDENT, "result.json", "environment.json", "metrics.jsonl", COMPARISON):
        for key in (*_values(file), *(NESTED if file == COMPARISON else ())):
            for number, value in enumerate(VALUES):
                yield f"{file}: {key}, value {number}", Case(file, key, value)


def check(case: Case, folder: Path) -> str:
    """Uses a run or a comparison with the changed file."""
    files = _comparison() if case.file == COMPARISON else _run()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    text = _text(case)
    if case.file == STUDENT:
        Image.new("RGB", (8, 8)).save(folder / "p.png")
        tensors = safetensors.torch.load(_run()[STUDENT])
        text = text.encode("utf-8", "replace").decode()  # safetensors stores valid text only
        (folder / STUDENT).write_bytes(safetensors.torch.save(tensors, {"dskd": text}))
    else:
        (folder / case.file).write_bytes(text.encode("utf-8", "surrogateescape"))
    line = refusal(lambda: _classify(folder) if case.file == STUDENT else _report(folder))
    return "read" if line is None else "refused"


def _text(case: Case) -> str:
    """The new text of the file."""
    if not case.key:
        return str(case.value)
    values: Any = copy.deepcopy(_values(case.file))
    *path, last = [int(part) if part.isdigit() else part for part in case.key.split(".")]
    inner = functools.reduce(operator.getitem, path, values)
    inner[last] = case.value
    return json.dumps(values)


def _classify(folder: Path) -> torch.Tensor:
    return predict(load_deployed(folder), [folder / "p.png"])


def _report(folder: Path) -> None:
    """Makes the table and the report of a run or a comparison."""
    summaries = summarize([runs.variant for runs in collect([folder]).methods], 500)
    columns, rows = summary_table(summaries)
    texts = [*(cell for row in rows for cell in row), *columns]
    if (folder / COMPARISON).is_file():
        texts += notes(read_comparison(folder), summaries)
    assert all(text.isprintable() for text in texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SECONDS", 0.0)
        page = make_report([folder], folder / "page.html")[0]
    for suffix in (".html", ".csv", ".tex"):
        assert "\x1b" not in page.with_suffix(suffix).read_text()


def _values(file: str) -> dict[str, Any]:
    """The values in the valid file."""
    if file == STUDENT:
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
            copy.write(_run()[STUDENT])
            copy.flush()
            with safetensors.safe_open(copy.name, "pt") as opened:
                return dict(json.loads(opened.metadata()["dskd"]))
    files = _comparison() if file == COMPARISON else _run()
    return dict(json.loads(files[file].splitlines()[-1] if "jsonl" in file else files[file]))


@functools.cache
def _run() -> dict[str, bytes]:
    """The files of a finished run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run.distill(recipe.load("digits", [*SMALL, "method={name: ce}", f"out={out}"]))
        return {name: (out / name).read_bytes() for name in READ}


@functools.cache
def _comparison() -> dict[str, bytes]:
    """The files of a finished comparison."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "compared"
        changes = [*SMALL, "teacher.name=resnet8", "teacher.epochs=1"]
        with live_table(grid := load_plan("digits", changes, ["kd,ce"], out, seeds=1)) as callback:
            run_grid(grid, callback)
        files = (path for name in (COMPARISON, *READ) for path in out.rglob(name))
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
