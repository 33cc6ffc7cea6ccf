"""Reading YAML: plain values only, and one-line errors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import yaml

from dskd.errors import InputError, brief

_LONGEST = 2**20
_LONGEST_VALUE = 2**12
_MOST_VALUES = 10**5


class _Loader(yaml.SafeLoader):
    """Plain values only, and not more of them than a recipe can need.

    A few lines of YAML may stand for any number of values, since a part can be repeated by its
    name, and a long number for hours of arithmetic.
    """

    def compose_document(self) -> yaml.Node | None:
        node = super().compose_document()
        if _size(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MOST_VALUES} values")
        return node


def _size(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """How many values a part stands for, those that it repeats counted each time."""
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > _LONGEST_VALUE:
            raise yaml.YAMLError(f"it holds a value of more than {_LONGEST_VALUE} letters")
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_VALUES + 1  # while it is counted: a part may hold itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = itertools.chain(*inner) if isinstance(node, yaml.MappingNode) else inner
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]


def read_yaml(text: str, what: str) -> Any:
    """The plain values in YAML.

    Args:
        text: The YAML.
        what: Names it in an error, as in ``"the recipe mine.yaml"``.

    Raises:
        InputError: It is not YAML, or holds more than any recipe does.

    Example:
        >>> read_yaml("[layer1, layer2]", "student.stages")
        ['layer1', 'layer2']
    """
    if len(text) > _LONGEST:
        raise InputError(f"{what} is longer than {_LONGEST} letters; no recipe is")
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
    except (AttributeError, LookupError):  # how PyYAML ends where a text does not fit its tag
        reason = "a value is not of the kind that its tag (!!) names"
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
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
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
