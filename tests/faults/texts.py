"""Hostile YAML and JSON: one line each, soon, and without filling the memory."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dskd.config.recipe import load
from dskd.deploy.student import load_deployed
from dskd.errors import InputError

FAMILY = "hostile texts"


class Case(NamedTuple):
    """A file by its name in a run's folder."""

    file: str
    data: bytes


def _doubling(first: str, form: str) -> str:
    """YAML of which each line repeats the one before ten times."""
    lines = [f"a: &a {first}"]
    for before, after in zip("abcdefghijkl", "bcdefghijklm", strict=True):
        lines.append(f"{after}: &{after} " + form.format(",".join([f"*{before}"] * 10)))
    return "\n".join(lines)


_START = "data: {name: digits}\nstudent:\n  name: resnet8\n  options: "
YAML: dict[str, str] = {
    "names that repeat": _doubling("[x]", "[{}]"),
    "mappings that repeat": _doubling("{x: 1}", "{{<<: [{}]}}"),
    "options that repeat": _START + "{" + ", ".join(_doubling("[x]", "[{}]").split("\n")) + "}",
    "a list in itself": "&a [*a]",
    "options in themselves": _START + "&a {a: *a}",
    "a mapping that is its own key": "&a {*a : 1}",
    "a mapping that takes itself in": "&a {<<: *a}",
    "deep lists": "[" * 20_000,
    "deep mappings": "{" * 20_000,
    "deep blocks": "- " * 100_000,
    "deep keys": "? " * 100_000,
    "deep lists that end": "[" * 2000 + "]" * 2000,
    "deep options": _START + "[" * 200 + "]" * 200,
    "a long text": "a" * 2**21,
    "many values": "[" + "a," * 200_000 + "]",
    "a number in parts": "seed: 1" + ":59" * 100_000,
    "a number of many digits": "seed: " + "9" * 5000,
    "a number of 16 to the many": "seed: 0x" + "f" * 4000,
    "a number beyond all": "train: {lr: 1.0e+999}",
    "a date that is none": "seed: 2020-13-45",
    "text in no code": "seed: !!binary '###'",
    "a moment that is none": "seed: !!timestamp x",
    "a switch that is none": "seed: !!bool x",
    "a whole number that is none": "seed: !!int ''",
    "a number that is none": "seed: !!float ''",
    "a call": "seed: !!python/object/apply:os.system ['touch mark']",
    "an object": "!!python/object/new:subprocess.Popen [[touch, mark]]",
    "a name": "seed: !!python/name:os.system",
    "a module": "seed: !!python/module:antigravity",
    "a tuple": "seed: !!python/tuple [1]",
    "a tag of one's own": "seed: !mine 1",
    "a tag of another's": "%TAG ! tag:yaml.org,2002:python/\n---\nseed: !name:os.system x",
    "a set": "!!set {a, b}",
    "another version": "%YAML 9.9\n---\nseed: 1",
    "two documents": "seed: 1\n---\nseed: 2",
    "a name that is none": "seed: *nobody",
    "signs of a terminal": "seed: \"\\x1b]0;x\\x07\"",
    "signs that turn the text around": "\"\\u202eseed\": 1",
    "a sign that is none": "seed: \x00",
    "half a sign": "seed: \"\\ud800\"",
    "a key that is a list": "{[a]: 1}",
    "a key that is nothing": "{null: 1}",
}  # fmt: skip
"""Recipes."""


def _tensors(header: bytes, length: int | None = None, rest: bytes = bytes(4)) -> bytes:
    """A safetensors file with a header of one's own."""
    return struct.pack("<Q", len(header) if length is None else length) + header + rest


def _told(facts: str) -> bytes:
    """A student's file that says something else of it."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return _tensors(json.dumps({"__metadata__": {"dskd": facts}, "w": tensor}).encode())


_FACTS = {
    "model": "resnet8", "options": {}, "classes": ["a", "b"], "shape": [3, 32, 32],
    "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1], "method": "ce", "addition": {},
}  # fmt: skip
_ONE = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HEADERS: dict[str, bytes] = {
    "deep lists": _told("[" * 100_000),
    "deep mappings": _told('{"a":' * 100_000),
    "deep options": _told(json.dumps(_FACTS)[:-1] + ',"x":' + "[" * 50_000 + "]" * 50_000 + "}"),
    "no mapping": _told("[1]"),
    "nothing": _told(""),
    "a number of many digits": _told("9" * 5000),
    "no number": _told('{"model": NaN}'),
    "code that is not asked for": _told(json.dumps(_FACTS | {"model": "os:system"})),
    "a model that is none": _told(json.dumps(_FACTS | {"model": "\x1b[2J"})),
    "a method that is none": _told(json.dumps(_FACTS | {"method": "os"})),
    "a method in a folder": _told(json.dumps(_FACTS | {"method": "../os"})),
    "an addition that is none": _told(json.dumps(_FACTS | {"addition": {"x": 1}})),
    "no classes": _told(json.dumps(_FACTS | {"classes": []})),
    "a shape below zero": _told(json.dumps(_FACTS | {"shape": [-3, 32, 32]})),
    "a shape beyond all": _told(json.dumps(_FACTS | {"shape": [10**12, 32, 32]})),
    "many classes": _told(json.dumps(_FACTS | {"classes": [str(i) for i in range(10**5)]})),
    "options that read a file": _told(
        json.dumps(_FACTS | {"model": "timm/resnet18", "options": {"checkpoint_path": "victim"}})
    ),
    "a mean of too few": _told(json.dumps(_FACTS | {"mean": [0.5]})),
    "a std of zero": _told(json.dumps(_FACTS | {"std": [0, 0, 0]})),
    "other weights": _told(json.dumps(_FACTS)),
    "a header beyond the file": _tensors(b"{}", 2**62),
    "a header of no length": _tensors(b"", 0),
    "a header that is no text": _tensors(b"\xff\xfe"),
    "deep header": _tensors(b'{"a":' * 50_000),
    "a tensor beyond the file": _tensors(
        b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    ),
    "a tensor of another size": _tensors(b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'),
    "a shape that overflows": _tensors(
        b'{"w":{"dtype":"F32","shape":[4294967296,4294967297],"data_offsets":[0,4]}}'
    ),
    "a shape below zero, of a tensor": _tensors(
        b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'
    ),
    "tensors that overlap": _tensors(
        ("{" + _ONE + "," + _ONE.replace('"w"', '"v"') + "}").encode()
    ),
    "offsets that turn back": _tensors(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}'),
    "a type that is none": _tensors(b'{"w":{"dtype":"OBJECT","shape":[1],"data_offsets":[0,4]}}'),
    "bytes that no tensor has": _tensors(("{" + _ONE + "}").encode(), rest=bytes(8)),
}
"""Files of a student, in safetensors."""


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """Every file by its name; not ``whole``: the quick ones."""
    for name, text in YAML.items():
        if whole or name != "many values":  # takes seconds
            yield f"yaml: {name}", Case("recipe.yaml", text.encode("utf-8", "surrogatepass"))
    for name, data in HEADERS.items():
        yield f"safetensors: {name}", Case("student.safetensors", data)


def check(case: Case, folder: Path) -> str:
    """Reads a file as a user would; nothing may come of it but one line."""
    path = folder / case.file
    path.write_bytes(case.data)
    start = Path.cwd()
    os.chdir(folder)
    try:
        with pytest.raises(InputError) as refused:
            load(str(path)) if path.suffix == ".yaml" else load_deployed(folder)
    finally:
        os.chdir(start)
    assert str(refused.value).isprintable(), "what is said must be one line"
    assert len(str(refused.value)) < 1000, "what is said must be short"
    assert list(folder.iterdir()) == [path], "something was written"
    return "refused"
