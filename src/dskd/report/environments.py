"""What runs were made with, as their files say it and as a report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from dskd.errors import printable
from dskd.storage.json_file import read_json
from dskd.storage.run_files import ENVIRONMENT

_SHOWN = ("device", "processor", "cores", "threads", "python", "platform")
_Line = Annotated[str, AfterValidator(printable)]


class _Environment(BaseModel):
    """The part of ``environment.json`` that a report needs."""

    model_config = ConfigDict(extra="allow")  # a later version may add facts

    command: list[_Line]
    commands: list[list[_Line]] = []
    packages: dict[_Line, _Line]
    python: _Line = ""
    platform: _Line = ""
    processor: _Line = ""
    device: _Line = ""
    cores: int | None = None
    threads: int | None = None


def read_environment(folder: Path) -> dict[str, Any]:
    """Reads ``environment.json`` of a run or of a comparison.

    Raises:
        InputError: It is missing or damaged.
    """
    fix = f"remove {folder} and make the run again"
    return read_json(folder / ENVIRONMENT, _Environment, fix).model_dump()


def shown_facts(environments: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The facts for a reader. One that differs between runs has all of its values."""
    found: dict[str, list[str]] = {}
    for environment in environments:
        own = {key: environment[key] for key in _SHOWN} | environment["packages"]
        for key, value in own.items():
            if value:
                found.setdefault(key, []).append(str(value))
    return [(key, ", ".join(dict.fromkeys(values))) for key, values in found.items()]


def each_once(environments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The environments that differ, without the commands."""
    plain = [{k: v for k, v in one.items() if "command" not in k} for one in environments]
    return [one for place, one in enumerate(plain) if one not in plain[:place]]
