"""Hostile JSON: what a student's file says of it, and what lies in a run's folder.

A student of a stranger is asked about a picture, a run of a stranger is reported on. Whatever is
told of them, they are used as told or refused in one line.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from outcomes import refusal
from PIL import Image

from dskd import recipe, run
from dskd.deployed import load_deployed, predict
from dskd.report.gather import gather

FAMILY = "hostile JSON"
STRIDE = 7
"""The suite tries one in so many, of each fact another."""

STUDENT = "student.safetensors"
READ = (STUDENT, "recipe.yaml", "result.json", "environment.json", "metrics.jsonl")
"""The files of a run that are read again."""

TEXTS = {
    "nothing": "",
    "half": '{"model": "resn',
    "null": "null",
    "a number": "5",
    "text": '"model"',
    "a list": "[]",
    "an empty mapping": "{}",
    "deep lists": "[" * 100_000,
    "deep lists that are closed": "[" * 100_000 + "]" * 100_000,
    "deep mappings": '{"a":' * 100_000,
    "a number of thousands of digits": "9" * 5000,
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
"""What may be told in place of a fact."""


class Told(NamedTuple):
    """A file of a run, and what is told in it: its whole text, or another value of one fact."""

    file: str
    key: str
    value: Any


def cases(whole: bool = True) -> Iterator[tuple[str, Told]]:
    """Every file with every text, and every fact with every value."""
    yield from islice(_all(), 0, None, 1 if whole else STRIDE)


def _all() -> Iterator[tuple[str, Told]]:
    for file in READ:
        for name, text in TEXTS.items():
            yield f"{file}: {name}", Told(file, "", text)
    for file in (STUDENT, "result.json", "environment.json", "metrics.jsonl"):
        for key in _facts(file):
            for number, value in enumerate(VALUES):
                yield f"{file}: {key}, value {number}", Told(file, key, value)


def check(case: Told, folder: Path) -> str:
    """Uses a run whose file tells something else."""
    for name, data in _run().items():
        (folder / name).write_bytes(data)
    Image.new("RGB", (8, 8)).save(folder / "p.png")
    text = case.value if not case.key else json.dumps({**_facts(case.file), case.key: case.value})
    if case.file == STUDENT:
        tensors = safetensors.torch.load(_run()[STUDENT])
        text = text.encode("utf-8", "replace").decode()  # the file holds no other text
        (folder / STUDENT).write_bytes(safetensors.torch.save(tensors, {"dskd": text}))
    else:
        (folder / case.file).write_bytes(text.encode("utf-8", "surrogateescape"))
    line = refusal(lambda: _ask(folder) if case.file == STUDENT else _report(folder))
    return "read" if line is None else "refused"


def _ask(folder: Path) -> torch.Tensor:
    return predict(load_deployed(folder), [folder / "p.png"])


def _report(folder: Path) -> object:
    return gather([folder]).methods[0].rows()


def _facts(file: str) -> dict[str, Any]:
    """What the file tells where nothing is wrong."""
    if file == STUDENT:
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
            copy.write(_run()[STUDENT])
            copy.flush()
            with safetensors.safe_open(copy.name, "pt") as opened:
                return dict(json.loads(opened.metadata()["dskd"]))
    return dict(json.loads(_run()[file].splitlines()[-1] if "jsonl" in file else _run()[file]))


@functools.cache
def _run() -> dict[str, bytes]:
    """The files of a finished run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        changes = ["data.share=0.02", "train.epochs=1", "method={name: ce}", f"out={out}"]
        run.distill(recipe.load("digits", [*changes, "student.name=resnet8"]))
        return {name: (out / name).read_bytes() for name in READ}
