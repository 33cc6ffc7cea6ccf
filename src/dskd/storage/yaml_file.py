"""Read YAML with plain values and a size limit. The files may come from anybody."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import yaml

from dskd.errors import InputError, brief

_MAX_LENGTH = 2**20
_MAX_VALUE_LENGTH = 2**12
_MAX_VALUES = 10**5


class Ambiguous(str):
    """Text without quotes that versions of YAML read differently: ``on``, ``007``, ``2024-11-28``.

    Where a setting is text, it is this text. Where a setting may be of any type, nobody can know.
    """

    __slots__ = ()


class _TextLoader(yaml.SafeLoader):
    """Loads lists, mappings and text, and refuses more of them than a recipe can need.

    Aliases let a few lines of YAML stand for any number of values, and a very long number takes
    hours to parse.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML replaces it in subclasses)

    def compose_document(self) -> yaml.Node | None:
        node = super().compose_document()
        if _count_values(node, {}) > _MAX_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MAX_VALUES} values")
        return node


class _Loader(_TextLoader):
    """Loads plain values.

    Numbers, truth values and null are those that all versions of YAML agree on. Other texts that
    YAML 1.1 takes for numbers, truth values or dates are `Ambiguous`.
    """

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        plain = node.style is None
        return Ambiguous(text) if plain and _differs_between_versions(text) else text


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
for _kind, _pattern, _starts in (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}",
        re.compile(f"^(?:{_pattern})$"),
        [*_starts, ""] if _kind == "null" else [*_starts],
    )


_NUMBER_OF_YAML_1_2 = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def _differs_between_versions(text: str) -> bool:
    if _NUMBER_OF_YAML_1_2.fullmatch(text):  # such as 1e-3 and 08
        return True
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], [])
    return any(
        pattern.match(text) and tag.rpartition(":")[2] in ("bool", "int", "float", "timestamp")
        for tag, pattern in resolvers
    )


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

    Text that versions of YAML read differently is returned as `Ambiguous` text.

    Args:
        text: The YAML.
        what: Names the source in an error, as in ``"the recipe mine.yaml"``.

    Raises:
        InputError: The text is not YAML, or holds more than any recipe does.

    Example:
        >>> read_yaml("[layer1, layer2]", "student.stages")
        ['layer1', 'layer2']
    """
    return _load(text, what, _Loader)


def read_yaml_text(text: str, what: str) -> Any:
    """Parses YAML as `read_yaml` does, and takes every value in it as text.

    Example:
        >>> read_yaml_text("[on, 007]", "data.classes")
        ['on', '007']
    """
    return _load(text, what, _TextLoader)


def _load(text: str, what: str, loader: type[_TextLoader]) -> Any:
    if len(text) > _MAX_LENGTH:
        raise InputError(f"{what} is longer than {_MAX_LENGTH} letters; no recipe is")
    try:
        return yaml.load(text, loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = f"{place}{error.problem or error.context}"
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
    except ValueError as error:  # a number of thousands of digits
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
