"""Short forms of the most important settings: options of the command line and Python arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dskd.data.catalog import DATASETS
from dskd.errors import InputError, option, unknown
from dskd.storage.paths import as_path


def data_settings(given: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a data set that is given by its name or as a folder.

    Args:
        given: A name of ``dskd list datasets``, or a folder of images.

    Raises:
        InputError: It is neither.

    Example:
        >>> data_settings("digits"), data_settings(".")
        ({'name': 'digits'}, {'name': 'folder', 'root': '.'})
    """
    if isinstance(given, str) and given in DATASETS:
        return {"name": given}
    path = as_path(given, "data")
    if path.exists():
        return {"name": "folder", "root": os.fspath(given)}
    if path.name != str(given):
        raise InputError(f"data: {path} is not there; check the path")
    names = [name for name, entry in DATASETS.items() if not entry.own_images]
    raise unknown("data set", given, [*names, "<a folder of images>"])


def overrides(
    *,
    data: str | None = None,
    student: str | None = None,
    teacher: str | None = None,
    method: str | None = None,
    epochs: int | None = None,
    out: Path | None = None,
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
    own = data.get("name") == "folder" and data.get("root")
    names.append(Path(own).expanduser().resolve().name if own else data.get("name"))
    return "-".join(str(name).strip("<>").replace("/", "_") for name in names if name)


def check_parts(values: Mapping[str, Any]) -> None:
    """Refuses a run without a recipe that has no student or no data.

    Raises:
        InputError: The message says how to give it.
    """
    for part, example in (("student", "timm/mobilenetv4_conv_small"), ("data", "photos/")):
        if values.get(part) is None:
            raise InputError(
                f"without a recipe, student and data are needed: give {option(part, example)}, or "
                "a recipe such as digits"
            )
