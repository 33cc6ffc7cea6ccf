"""The metrics of a run on disk: one row per epoch, as a line of JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dskd.storage.atomic import explain_disk_errors, replace_file
from dskd.storage.json_file import read_json_lines
from dskd.storage.metric_names import from_file

_Metric = (
    Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | Annotated[float, Field(strict=True)]
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads all rows, with the keys that the code has; none if there is no file.

    Raises:
        InputError: The file is damaged.
    """
    if not path.is_file():
        return []
    fix = f"remove {path.parent} to start again"
    return [from_file(row) for row in read_json_lines(path, dict[str, _Metric], fix)]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the file anew.

    Args:
        path: The file.
        rows: With the keys of files (`dskd.storage.metric_names.to_file`).
    """
    replace_file(path, "".join(map(_line, rows)).encode())


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a row, and waits until it is on the disk.

    Args:
        path: The file.
        row: As for `write_rows`.
    """
    line = _line(row).encode()
    with explain_disk_errors(path, lambda: len(line)), path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
