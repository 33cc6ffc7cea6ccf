"""Reading JSON: bounded, typed, and one-line errors. A run or a comparison may be anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from dskd.errors import InputError

T = TypeVar("T")

LONGEST = 2**20
"""Bytes of a file, at most."""
LONGEST_LOG = 2**24
"""Bytes of a file that grows by a line an epoch or a run."""
_LONGEST_PLACE = 60


def read_text(path: Path, fix: str, longest: int = LONGEST) -> str:
    """The text of a file that is not longer than it can need to be.

    Args:
        path: The file.
        fix: What to do where it is no good, for the message.
        longest: Bytes that are read, at most.

    Raises:
        InputError: It is not there, no plain file, longer, or not UTF-8.
    """
    try:
        if not path.is_file():  # a device or a pipe may never end
            raise InputError(f"{path} is missing or is no plain file; {fix}")
        with path.open("rb") as file:
            data = file.read(longest + 1)
        if len(data) > longest:
            raise InputError(f"{path} is longer than {longest:,} bytes; {fix}")
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path} is damaged: it is not text in UTF-8; {fix}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; {fix}") from None


def read_json(path: Path, kind: type[T], fix: str) -> T:
    """What a JSON file holds, checked and typed.

    Args:
        path: The file.
        kind: Anything that pydantic validates.
        fix: What to do where it is no good, for the message.

    Raises:
        InputError: As `read_text`, or it is no JSON or not of that kind.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers.json"
        >>> _ = path.write_text('{"epoch": 1, "accuracy": 97.5}')
        >>> read_json(path, dict[str, float], "write it again")
        {'epoch': 1.0, 'accuracy': 97.5}
    """
    text = read_text(path, fix)
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise InputError(f"{path} {_reason(error)}; {fix}") from None


def read_json_lines(path: Path, kind: type[T], fix: str) -> list[T]:
    """What a log of JSON holds, a line a value; of a line that a kill cut short nothing is read.

    Args:
        path: The file.
        kind: Of a line: anything that pydantic validates, and JSON ends with a brace.
        fix: What to do where it is no good, for the message.

    Raises:
        InputError: As `read_json`.
    """
    lines = read_text(path, fix, LONGEST_LOG).split("\n")
    adapter = TypeAdapter(kind)
    try:
        return [adapter.validate_json(line) for line in lines if line.endswith("}")]
    except ValidationError as error:
        raise InputError(f"{path} {_reason(error)}; {fix}") from None


def _reason(error: ValidationError) -> str:
    """What is wrong in the first place that is."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:_LONGEST_PLACE] for part in first["loc"])
    if first["type"] == "missing":
        return f"says nothing of {place}: an older version wrote it, or it is damaged"
    message = first["msg"].removeprefix("Value error, ")
    return f"is damaged: {place}: {message}" if place else f"is damaged: {message}"
