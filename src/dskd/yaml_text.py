"""Reading YAML: plain values only, and one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dskd.errors import InputError, brief


def read_yaml(text: str, what: str) -> Any:
    """The plain values in YAML.

    Args:
        text: The YAML.
        what: Names it in an error, as in ``"the recipe mine.yaml"``.

    Raises:
        InputError: It is not YAML.

    Example:
        >>> read_yaml("[layer1, layer2]", "student.stages")
        ['layer1', 'layer2']
    """
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = f"{place}{error.problem or error.context}"
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
    except ValueError as error:  # a date that does not exist, a number of thousands of digits
        reason = str(error)
    except RecursionError:
        reason = "it is nested too deeply"
    raise InputError(f"{what} is not YAML: {reason}")


def read_yaml_file(path: Path, what: str) -> dict[str, Any]:
    """The settings in a YAML file.

    Args:
        path: The file.
        what: Names it in an error, as in ``"recipe"``.

    Raises:
        InputError: The file cannot be read, or is no YAML mapping.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read the {what} {path}: {error.strerror or error}; check the path"
        ) from None
    except ValueError:
        raise InputError(f"the {what} {path} is not YAML: it is not text in UTF-8") from None
    values = read_yaml(text, f"the {what} {path}")
    if not isinstance(values, dict):
        raise InputError(
            f"the {what} {path} holds {brief(values)}, not settings; write them as in data: "
            "{name: digits}"
        )
    return values
