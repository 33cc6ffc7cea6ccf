"""Short forms of the most important settings: options of the command line and Python arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from dskd.data.catalog import DATASETS, MANIFESTS, SAVED, title
from dskd.errors import InputError, brief, option, unknown
from dskd.storage.paths import as_path

SHARDS = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
"""How the name of a tar file ends."""
_MAGIC = re.compile(r"[*?{\[]")


def data_settings(given: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a data set that is given by its name, as a folder or as a manifest.

    Args:
        given: A name of ``dskd list datasets``, a folder of images, a manifest, whose suffix tells
            it, a pattern of tar shards, or ``hf/`` and a folder or a name on the Hub.

    Raises:
        InputError: It is neither.

    Example:
        >>> data_settings("digits"), data_settings(".")
        ({'name': 'digits'}, {'name': 'folder', 'root': '.'})
    """
    path, text = as_path(given, "data"), os.fspath(given)
    if isinstance(given, str) and given in DATASETS:
        return {"name": given}
    if isinstance(given, str) and given.startswith("hf/"):
        place = given.removeprefix("hf/")
        return {"name": "hf", "root" if as_path(place, "data").exists() else "hub": place}
    if SHARDS.search(text) or "://" in text:
        return _shards(text)
    if path.exists():
        return _of_path(path) | {"root": text}
    if path.name != str(given) or path.suffix.lower() in MANIFESTS:
        raise InputError(f"data: {path} is not there; check the path")
    names = [name for name, entry in DATASETS.items() if not entry.own_images]
    known = [*names, "<a folder, a manifest or tar files>", "hf/<name>"]
    found = unknown("data set", given, known)
    raise InputError(f"{found}; there is no folder or file {brief(str(given))} here either")


def _of_path(path: Path) -> dict[str, Any]:
    """The settings of the kind of data that lies at a path."""
    if path.suffix.lower() in MANIFESTS and not path.is_dir():
        return {"name": "manifest"}
    if any((path / name).is_file() for name in SAVED):
        return {"name": "hf"}
    if any(path.glob("*.tar")) and not any(one.is_dir() for one in path.glob("*")):
        return {"name": "webdataset", "shards": "*.tar"}
    return {"name": "folder"}


def _shards(given: str) -> dict[str, Any]:
    """The settings of shards. Local patterns are relative to the folder that they begin with."""
    if "://" in given:
        return {"name": "webdataset", "shards": given}
    parts = Path(given).parts
    fixed = list(takewhile(lambda part: not _MAGIC.search(part), parts[:-1]))
    return {
        "name": "webdataset",
        "root": os.fspath(Path(*fixed)),
        "shards": "/".join(parts[len(fixed) :]),
    }


def overrides(
    *,
    data: str | None = None,
    student: str | None = None,
    teacher: str | None = None,
    method: str | None = None,
    epochs: int | None = None,
    out: Path | None = None,
    exits: bool = False,
) -> list[str]:
    """Options of the command line as ``key=value``.

    Raises:
        InputError: ``data`` is neither a data set nor a folder.

    Example:
        >>> overrides(data="digits", student="resnet8", epochs=3)
        ['data.name=digits', 'student.name=resnet8', 'train.epochs=3']
    """
    given: dict[str, object] = {}
    if data is not None:
        given |= {f"data.{key}": value for key, value in data_settings(data).items()}
    given |= {
        "student.name": student,
        "teacher.name": teacher,
        "method.name": method,
        "train.epochs": epochs,
        "out": out,
        "train.exits": "true" if exits else None,
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def label(values: Mapping[str, Any]) -> str:
    """The name of the folder of all runs with these models and images.

    Example:
        >>> label({"student": {"name": "timm/resnet18"}, "data": {"name": "folder", "root": "a/b"}})
        'timm_resnet18-b'
    """
    names = [(values.get(part) or {}).get("name") for part in ("student", "teacher")]
    data = values.get("data") or {}
    name, root = str(data.get("name") or ""), data.get("root")
    names.append(title(name, Path(root) if root else None, data.get("hub")))
    return "-".join(str(name).strip("<>").replace("/", "_") for name in names if name)


def check_sections(values: Mapping[str, Any]) -> None:
    """Refuses a recipe in which something else stands where settings belong, before it is merged.

    Raises:
        InputError: The message says how settings are written.
    """
    for key in ("data", "student", "teacher", "method", "train"):
        value = values.get(key)
        if value is not None and not isinstance(value, Mapping):
            example = "{'epochs': 10}" if key == "train" else "{'name': ...}"
            raise InputError(f"{key} holds settings, as in {example}; got {brief(value)}")


def check_parts(values: Mapping[str, Any]) -> None:
    """Refuses a run without a recipe that has no student or no data.

    Raises:
        InputError: The message says how to give it.
    """
    examples = {"student": "timm/mobilenetv4_conv_small", "data": "photos/"}
    missing = [option(part, text) for part, text in examples.items() if values.get(part) is None]
    if missing:
        raise InputError(
            f"without a recipe, student and data are needed: give {' and '.join(missing)}, or a "
            "recipe such as digits"
        )
