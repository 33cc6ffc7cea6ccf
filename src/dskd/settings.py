"""Typed settings: what a recipe or a signature admits, and one-line errors for the rest."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)
from pydantic_core import ErrorDetails

from dskd.errors import InputError, brief, unknown

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=BaseModel)


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


def _path(value: Any) -> Any:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError("a path is needed")
    try:
        return Path(value).expanduser() if isinstance(value, str | Path) else value
    except RuntimeError:
        raise ValueError("that user has no home folder") from None


_number = BeforeValidator(_not_boolean)
_LARGEST = 10**9
Number = Annotated[float, _number, Field(allow_inf_nan=False)]
"""A number."""
Weight = Annotated[float, _number, Field(ge=0, allow_inf_nan=False)]
"""A number of 0 or more."""
Positive = Annotated[float, _number, Field(gt=0, allow_inf_nan=False)]
"""A number above 0."""
Rate = Annotated[float, _number, Field(gt=0, le=1e6)]
"""A learning rate: above 0, and no more than weights in float32 can be changed by."""
Epochs = Annotated[float, _number, Field(ge=0, allow_inf_nan=False), "epochs"]
"""A number of epochs, 0 or more."""
Share = Annotated[float, _number, Field(gt=0, le=1)]
"""A number above 0, at most 1."""
Fraction = Annotated[float, _number, Field(ge=0, lt=1)]
"""A number from 0, below 1."""
Count = Annotated[int, _number, Field(ge=1, le=_LARGEST)]
"""A whole number of 1 or more."""
Natural = Annotated[int, _number, Field(ge=0, le=_LARGEST)]
"""A whole number of 0 or more."""
Size = Annotated[int, _number, Field(ge=0, lt=2**63)]
"""A number of bytes or parameters."""
Percent = Annotated[float, _number, Field(ge=0, le=100)]
"""A number from 0 to 100."""
Seed = Annotated[int, _number, Field(ge=0, lt=2**63)]
"""A whole number of 0 or more that random generators take."""
PathSetting = Annotated[Path, BeforeValidator(_path)]
"""A file or folder; ``~`` is the home folder."""

# Named choices. They stand here so that a recipe can be read without importing torch.
DeviceName = Literal["auto", "cpu", "cuda"]
"""A device; ``auto`` is a GPU if there is one, else the CPU."""
Precision = Literal["float32", "bfloat16"]
"""Number format of the forward passes."""
OptimizerName = Literal["sgd", "adamw"]
"""An optimizer."""
Schedule = Literal["step", "cosine"]
"""A learning-rate schedule."""


class Settings(BaseModel):
    """A group of settings: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def validate(
    model: type[M], values: Mapping[str, Any], where: str = "", known: Iterable[str] = ()
) -> M:
    """``values`` as a ``model``, or one line that says what is wrong.

    Args:
        model: The typed settings.
        values: What the user gave.
        where: Put before the key in the error, as in ``"method."``.
        known: Every key that may be suggested; by default those of ``model``.

    Raises:
        InputError: A key does not exist (the nearest is named) or a value does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _in_one_line(first, where, [*known] or known_keys(model, where)) from None


# What pydantic says of these in the words of Python, or at length.
_NEEDED = {
    "int": "a whole number is needed",
    "float": "a number is needed",
    "bool": "true or false is needed",
    "string": "text is needed",
    "path": "a path is needed",
    "list": "a list is needed, as in [a, b]",
    "tuple": "a list is needed, as in [a, b]",
}


def _in_one_line(error: ErrorDetails, where: str, known: list[str]) -> InputError:
    key, kind, given = where.removesuffix("."), error["type"], error["input"]
    for part in error["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    key = key.removeprefix(".")
    if kind == "extra_forbidden":
        return unknown_key(key, known)
    if kind == "missing":
        return InputError(f"{key} is missing; set it")
    if kind == "invalid_key" or key.endswith(".[key]"):
        return InputError(f"{key.removesuffix('.[key]')}: a key must be text; put it in quotes")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        example = next((k for k in known if k.startswith(f"{key}.")), f"{key}.<name>")
        return InputError(f"{key} holds settings, got {brief(given)}; set them as in {example}=...")
    message = error["msg"].removeprefix("Value error, ")
    if kind == "too_short":
        message = "at least one is needed"
    if kind.endswith(("_type", "_parsing", "_from_float", "_parsing_size")):
        message = _NEEDED.get(kind.split("_")[0], message)
    fix = ""
    if kind == "literal_error":
        choices = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        close = difflib.get_close_matches(str(given), choices, n=1, cutoff=0.5)
        fix = f"; did you mean {close[0]!r}?" if close else ""
    if kind in ("string_type", "path_type") and type(given) in (int, float):
        fix = f"; put it in quotes if that is its name, as in '{key}=\"{brief(given)}\"'"
    return InputError(f"{key}: {message[:1].lower()}{message[1:]}, got {brief(given)}{fix}")


def unknown_key(key: str, known: Iterable[str]) -> InputError:
    """The error for a setting that does not exist, with the one that was probably meant.

    Example:
        >>> str(unknown_key("epochs", ["train.epochs", "train.lr", "teacher.epochs", "seed"]))
        "unknown setting 'epochs'; did you mean 'train.epochs' or 'teacher.epochs'?"
        >>> str(unknown_key("trian", ["train.epochs", "train.lr", "seed"]))
        "unknown setting 'trian'; did you mean 'train'? known: seed, train"
    """
    known = list(known)
    last = key.rpartition(".")[2]
    elsewhere = [repr(other) for other in known if other.rpartition(".")[2] == last]
    if elsewhere:
        return InputError(f"unknown setting {key!r}; did you mean {' or '.join(elsewhere)}?")
    depth = key.count(".") + 1
    return unknown("setting", key, {".".join(other.split(".")[:depth]) for other in known})


def known_keys(model: type[BaseModel], where: str = "") -> list[str]:
    """Every key of the settings, with dots between the levels."""
    keys = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        nested = [t for t in (inner, *getattr(inner, "__args__", ())) if _is_settings(t)]
        keys += known_keys(nested[0], f"{where}{name}.") if nested else [f"{where}{name}"]
    return keys


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


@functools.cache
def signature_settings(function: Callable[..., Any]) -> type[Settings]:
    """The keyword-only parameters of ``function`` as typed settings."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return create_model(function.__qualname__, __base__=Settings, **fields)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function or constructor that validates its keyword-only arguments by their annotations.

    Example:
        >>> class Loss:
        ...     @checked
        ...     def __init__(self, *, temperature: Positive = 4.0) -> None: ...
        >>> Loss(temperature=0)
        Traceback (most recent call last):
        dskd.errors.InputError: temperature: input should be greater than 0, got 0
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        settings = validate(signature_settings(function), kwargs)
        kwargs.update(settings.model_dump())
        return function(*args, **kwargs)

    return wrapper
