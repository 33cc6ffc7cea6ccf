"""Read JSON files with a size limit and type checks. The files may come from anybody."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from dskd.errors import InputError

T = TypeVar("T")

MAX_BYTES = 2**20
"""Maximum size of a file."""
MAX_LOG_BYTES = 2**24
"""Maximum size of a file that grows by one line per epoch or run."""
_MAX_KEY_LENGTH = 60


def read_text(path: Path, fix: str, max_bytes: int = MAX_BYTES) -> str:
    """Reads a text file of limited size.

    Args:
        path: The file.
        fix: What the user can do about a bad file, for the error message.
        max_bytes: Maximum size of the file.

    Raises:
        InputError: The file is missing, not a regular file, too long, or not UTF-8.
    """
    try:
        if not path.is_file():  # a device or a pipe may never end
            raise InputError(f"{path} is missing or is no plain file; {fix}")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise InputError(f"{path} is longer than {max_bytes:,} bytes; {fix}")
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path} is damaged: it is not text in UTF-8; {fix}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; {fix}") from None


def read_json(path: Path, kind: type[T], fix: str) -> T:
    """Reads a JSON file and validates it against a type.

    Args:
        path: The file.
        kind: The type of the content: anything that pydantic can validate.
        fix: What the user can do about a bad file, for the error message.

    Raises:
        InputError: As for `read_text`, or the content is not JSON or not of that type.

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
    """Reads a log that holds one JSON value per line. A line that is cut short is skipped.

    Args:
        path: The file.
        kind: The type of a line: anything that pydantic can validate and whose JSON ends with a
            brace.
        fix: What the user can do about a bad file, for the error message.

    Raises:
        InputError: As for `read_json`.
    """
    lines = read_text(path, fix, MAX_LOG_BYTES).split("\n")
    adapter = TypeAdapter(kind)
    try:
        return [adapter.validate_json(line) for line in lines if line.endswith("}")]
    except ValidationError as error:
        raise InputError(f"{path} {_reason(error)}; {fix}") from None


def _reason(error: ValidationError) -> str:
    """Describes the first error of a validation."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:_MAX_KEY_LENGTH] for part in first["loc"])
    if first["type"] == "missing":
        return f"lacks {place}: an older version wrote it, or it is damaged"
    message = first["msg"].removeprefix("Value error, ")
    return f"is damaged: {place}: {message}" if place else f"is damaged: {message}"
