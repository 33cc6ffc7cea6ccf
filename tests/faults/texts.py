"""Malicious YAML and safetensors headers: refused in one line, quickly, in little memory."""

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

FAMILY = "malicious YAML and safetensors headers"


class Case(NamedTuple):
    """A file in a run's folder.

    Attributes:
        file: Name of the file.
        data: Its content.
    """

    file: str
    data: bytes


def _doubling(first: str, form: str) -> str:
    """YAML in which each line repeats the previous one ten times."""
    lines = [f"a: &a {first}"]
    for before, after in zip("abcdefghijkl", "bcdefghijklm", strict=True):
        lines.append(f"{after}: &{after} " + form.format(",".join([f"*{before}"] * 10)))
    return "\n".join(lines)


_START = "data: {name: digits}\nstudent:\n  name: resnet8\n  options: "
YAML: dict[str, str] = {
    "repeated aliases": _doubling("[x]", "[{}]"),
    "repeated merged mappings": _doubling("{x: 1}", "{{<<: [{}]}}"),
    "aliases in options": _START + "{" + ", ".join(_doubling("[x]", "[{}]").split("\n")) + "}",
    "a recursive list": "&a [*a]",
    "recursive options": _START + "&a {a: *a}",
    "a mapping that is its own key": "&a {*a : 1}",
    "a mapping that merges itself": "&a {<<: *a}",
    "deep lists": "[" * 20_000,
    "deep mappings": "{" * 20_000,
    "deep blocks": "- " * 100_000,
    "deep keys": "? " * 100_000,
    "deep lists, closed": "[" * 2000 + "]" * 2000,
    "deep options": _START + "[" * 200 + "]" * 200,
    "a long text": "a" * 2**21,
    "many values": "[" + "a," * 200_000 + "]",
    "a sexagesimal number": "seed: 1" + ":59" * 100_000,
    "a number of 5,000 digits": "seed: " + "9" * 5000,
    "a long hexadecimal number": "seed: 0x" + "f" * 4000,
    "a number beyond float64": "train: {lr: 1.0e+999}",
    "an invalid date": "seed: 2020-13-45",
    "invalid base64": "seed: !!binary '###'",
    "an invalid timestamp": "seed: !!timestamp x",
    "an invalid boolean": "seed: !!bool x",
    "an invalid integer": "seed: !!int ''",
    "an invalid float": "seed: !!float ''",
    "a Python call": "seed: !!python/object/apply:os.system ['touch mark']",
    "a Python object": "!!python/object/new:subprocess.Popen [[touch, mark]]",
    "a Python name": "seed: !!python/name:os.system",
    "a Python module": "seed: !!python/module:antigravity",
    "a Python tuple": "seed: !!python/tuple [1]",
    "an unknown tag": "seed: !mine 1",
    "a redefined tag": "%TAG ! tag:yaml.org,2002:python/\n---\nseed: !name:os.system x",
    "a set": "!!set {a, b}",
    "another YAML version": "%YAML 9.9\n---\nseed: 1",
    "two documents": "seed: 1\n---\nseed: 2",
    "an undefined alias": "seed: *nobody",
    "terminal control codes": "seed: \"\\x1b]0;x\\x07\"",
    "a right-to-left override": "\"\\u202eseed\": 1",
    "a null character": "seed: \x00",
    "half a surrogate pair": "seed: \"\\ud800\"",
    "a key that is a list": "{[a]: 1}",
    "a key that is null": "{null: 1}",
}  # fmt: skip
"""Malicious recipes."""


def _tensors(header: bytes, length: int | None = None, rest: bytes = bytes(4)) -> bytes:
    """A safetensors file with the given header."""
    return struct.pack("<Q", len(header) if length is None else length) + header + rest


def _student(facts: str) -> bytes:
    """A student's file with the given metadata."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return _tensors(json.dumps({"__metadata__": {"dskd": facts}, "w": tensor}).encode())


_FACTS = {
    "model": "resnet8", "options": {}, "classes": ["a", "b"], "shape": [3, 32, 32],
    "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1], "method": "ce", "deploy_config": {},
}  # fmt: skip
_ONE = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HEADERS: dict[str, bytes] = {
    "deep lists": _student("[" * 100_000),
    "deep mappings": _student('{"a":' * 100_000),
    "deep options": _student(json.dumps(_FACTS)[:-1] + ',"x":' + "[" * 50_000 + "]" * 50_000 + "}"),
    "a list": _student("[1]"),
    "empty metadata": _student(""),
    "a number of 5,000 digits": _student("9" * 5000),
    "NaN": _student('{"model": NaN}'),
    "code": _student(json.dumps(_FACTS | {"model": "os:system"})),
    "an unknown model": _student(json.dumps(_FACTS | {"model": "\x1b[2J"})),
    "an unknown method": _student(json.dumps(_FACTS | {"method": "os"})),
    "a path as method": _student(json.dumps(_FACTS | {"method": "../os"})),
    "an unknown deploy_config": _student(json.dumps(_FACTS | {"deploy_config": {"x": 1}})),
    "no classes": _student(json.dumps(_FACTS | {"classes": []})),
    "a negative shape": _student(json.dumps(_FACTS | {"shape": [-3, 32, 32]})),
    "a huge shape": _student(json.dumps(_FACTS | {"shape": [10**12, 32, 32]})),
    "100,000 classes": _student(json.dumps(_FACTS | {"classes": [str(i) for i in range(10**5)]})),
    "options that read a file": _student(
        json.dumps(_FACTS | {"model": "timm/resnet18", "options": {"checkpoint_path": "victim"}})
    ),
    "a mean with too few channels": _student(json.dumps(_FACTS | {"mean": [0.5]})),
    "a std of zero": _student(json.dumps(_FACTS | {"std": [0, 0, 0]})),
    "weights of another model": _student(json.dumps(_FACTS)),
    "a header beyond the file": _tensors(b"{}", 2**62),
    "a header of no length": _tensors(b"", 0),
    "a header that is not UTF-8": _tensors(b"\xff\xfe"),
    "a deep header": _tensors(b'{"a":' * 50_000),
    "a tensor beyond the file": _tensors(
        b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    ),
    "a tensor of another size": _tensors(b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'),
    "a shape that overflows": _tensors(
        b'{"w":{"dtype":"F32","shape":[4294967296,4294967297],"data_offsets":[0,4]}}'
    ),
    "a tensor with a negative shape": _tensors(
        b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'
    ),
    "overlapping tensors": _tensors(("{" + _ONE + "," + _ONE.replace('"w"', '"v"') + "}").encode()),
    "offsets in reverse order": _tensors(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}'),
    "an unknown dtype": _tensors(b'{"w":{"dtype":"OBJECT","shape":[1],"data_offsets":[0,4]}}'),
    "bytes of no tensor": _tensors(("{" + _ONE + "}").encode(), rest=bytes(8)),
}
"""Malicious files of a student."""


def cases(whole: bool = True) -> Iterator[tuple[str, Case]]:
    """Every file. Without ``whole``, those that are read quickly."""
    for name, text in YAML.items():
        if whole or name != "many values":  # takes seconds
            yield f"yaml: {name}", Case("recipe.yaml", text.encode("utf-8", "surrogatepass"))
    for name, data in HEADERS.items():
        yield f"safetensors: {name}", Case("student.safetensors", data)


def check(case: Case, folder: Path) -> str:
    """Reads a file and checks that the only effect is a one-line error."""
    path = folder / case.file
    path.write_bytes(case.data)
    start = Path.cwd()
    os.chdir(folder)
    try:
        with pytest.raises(InputError) as refused:
            load(str(path)) if path.suffix == ".yaml" else load_deployed(folder)
    finally:
        os.chdir(start)
    assert str(refused.value).isprintable(), "the message must be one line"
    assert len(str(refused.value)) < 1000, "the message must be short"
    assert list(folder.iterdir()) == [path], "a file was written"
    return "refused"
