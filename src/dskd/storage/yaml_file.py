"""Read YAML with plain values and a size limit. The files may come from anybody."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import yaml

from dskd.errors import InputError, brief

_MAX_LENGTH = 2**20
_MAX_VALUE_LENGTH = 2**12
_MAX_VALUES = 10**5


class _Loader(yaml.SafeLoader):
    """Loads plain values, and refuses more of them than a recipe can need.

    Aliases let a few lines of YAML stand for any number of values, and a very long number takes
    hours to parse.
    """

    def compose_document(self) -> yaml.Node | None:
        node = super().compose_document()
        if _count_values(node, {}) > _MAX_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MAX_VALUES} values")
        return node


def _count_values(node: yaml.Node | None, counts: dict[int, int]) -> int:
    """Counts the values of a node. An aliased node counts each time it is used."""
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > _MAX_VALUE_LENGTH:
            raise yaml.YAMLError(f"it holds a value of more than {_MAX_VALUE_LENGTH} letters")
        return 1
    if id(node) not in counts:
        counts[id(node)] = _MAX_VALUES + 1  # until it is counted: a node may contain itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = itertools.chain(*inner) if isinstance(node, yaml.MappingNode) else inner
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
    return counts[id(node)]


def read_yaml(text: str, what: str) -> Any:
    """Parses YAML that holds plain values.

    Args:
        text: The YAML.
        what: Names the source in an error, as in ``"the recipe mine.yaml"``.

    Raises:
        InputError: The text is not YAML, or holds more than any recipe does.

    Example:
        >>> read_yaml("[layer1, layer2]", "student.stages")
        ['layer1', 'layer2']
    """
    if len(text) > _MAX_LENGTH:
        raise InputError(f"{what} is longer than {_MAX_LENGTH} letters; no recipe is")
    try:
        return yaml.load(text, _Loader)
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
    except (AttributeError, LookupError):  # raised by PyYAML if a text does not fit its tag
        reason = "a value does not have the type of its tag (!!)"
    raise InputError(f"{what} is not YAML: {reason}")


def read_yaml_file(path: Path, what: str) -> dict[str, Any]:
    """Reads the settings in a YAML file.

    Args:
        path: The file.
        what: Names the file in an error, as in ``"recipe"``.

    Raises:
        InputError: The file cannot be read, or does not hold a YAML mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_LENGTH + 1)
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
