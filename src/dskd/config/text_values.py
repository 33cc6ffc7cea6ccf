"""Values that a command line gives as text, typed by the setting that they are for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from dskd import methods
from dskd.config.schema import MethodSettings, Recipe
from dskd.settings import signature_settings
from dskd.storage.yaml_file import read_yaml, read_yaml_text

_COMMAS = re.compile(r",(?![^\[{]*[\]}])")
"""A comma outside of brackets."""
_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?\.?inf|\.?nan")


def setting_value(key: str, text: str, method: object, model: type[BaseModel] = Recipe) -> Any:
    """The value of a recipe's setting that is written as ``key=text``.

    - Text and paths are taken as they stand, also with ``#``, ``: ``, quotes or spaces.
    - Numbers are decimal: ``007`` is 7.
    - Lists are written as in ``[layer1, layer2]``. Their parts are typed in the same way. One
      number may stand for a list of numbers, as in ``teacher.mean=0``.
    - Mappings, and settings of any type such as ``student.options.NAME``, are YAML.
    - ``null`` is None where a setting may be None. A file of that name is ``./null``.

    Args:
        key: The setting, with dots between levels.
        text: Its value.
        method: Name of the recipe's method, whose signature types ``method.NAME``.
        model: The settings of the recipe.

    Raises:
        InputError: A list or mapping is not well-formed.

    Example:
        >>> setting_value("out", "run #1", "kd"), setting_value("train.lr", "1e-2", "kd")
        ('run #1', 0.01)
        >>> setting_value("data.classes", "[on, 007]", "kd")
        ['on', '007']
    """
    return typed_value(_annotation(model, key.split("."), method), text, key)


def listed(text: str) -> list[str]:
    """The parts of a text that commas separate, but for commas within brackets.

    Example:
        >>> listed("kd, dskd:supervise=[1, 2]")
        ['kd', 'dskd:supervise=[1, 2]']
    """
    return [part.strip() for part in _COMMAS.split(text)]


def method_setting_value(method: str, key: str, text: str) -> Any:
    """The value of a method's own setting, typed like that of `setting_value`.

    Example:
        >>> method_setting_value("dskd", "supervise", "[1, 2]")
        [1, 2]
    """
    return typed_value(_annotation(MethodSettings, [key], method), text, key)


def is_whole_number(key: str, method: object) -> bool:
    """Whether a setting of a recipe takes whole numbers, and no others.

    Example:
        >>> is_whole_number("train.batch_size", "kd"), is_whole_number("train.lr", "kd")
        (True, False)
    """
    kinds = list(_kinds(_annotation(Recipe, key.split("."), method)))
    return int in kinds and float not in kinds


def typed_value(annotation: Any, text: str, what: str) -> Any:
    """A text as a value of a type. What does not fit stays text, and is refused by validation.

    Args:
        annotation: The type; None if there is no such setting.
        text: The value.
        what: Names the setting in an error.
    """
    kinds = list(_kinds(annotation))
    if type(None) in kinds and text == "null":
        return None
    if Any in kinds or any(_is_mapping(kind) for kind in kinds):
        return read_yaml(text, f"{what}: the value {text!r}")
    lists = [kind for kind in kinds if get_origin(kind) in (list, tuple)]
    if lists and text.lstrip().startswith("["):
        parts = read_yaml_text(text, f"{what}: the value {text!r}")
        item = get_args(lists[0])[0]
        return [typed_value(item, part, what) if isinstance(part, str) else part for part in parts]
    # One number may stand for a list of numbers; where it may not, validation refuses the number.
    items = [kind for one in lists for kind in _kinds(get_args(one)[0])]
    if not {int, float, bool}.isdisjoint([*kinds, *items]) and str not in kinds:
        return _number_or_boolean(text)
    return text


def _number_or_boolean(text: str) -> int | float | bool | str:
    plain = text.strip()
    if plain.lower() in ("true", "false"):
        return plain.lower() == "true"
    if _WHOLE.fullmatch(plain) and len(plain) < 1000:  # Python refuses to parse thousands
        return int(plain)
    return float(plain.replace(".i", "i").replace(".n", "n")) if _DECIMAL.fullmatch(plain) else text


def _kinds(annotation: Any) -> Iterator[Any]:
    """The members of a union, without `Annotated`; of listed values, their types but for text."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin is Literal:
        yield from (type(value) for value in get_args(annotation) if not isinstance(value, str))
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _kinds(member)
    elif annotation is not None:
        yield annotation


def _is_mapping(kind: Any) -> bool:
    kind = get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, BaseModel | Mapping)


def _annotation(model: type[BaseModel], parts: list[str], method: object) -> Any:
    """The type of a setting of ``model``; None if there is none."""
    fields = model.model_fields
    if issubclass(model, MethodSettings) and methods.exists(method):
        fields = fields | signature_settings(methods.find(str(method)).__init__).model_fields
    if parts[0] not in fields:
        return None
    annotation = fields[parts[0]].annotation
    if len(parts) == 1:
        return annotation
    for kind in _kinds(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return _annotation(kind, parts[1:], method)
        if _is_mapping(kind):
            return Any
    return None
