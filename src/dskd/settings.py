"""Typed settings: what a recipe or a signature admits, and one-line errors for the rest."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from dskd.errors import InputError, unknown

P = ParamSpec("P")
M = TypeVar("M", bound=BaseModel)


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


_number = BeforeValidator(_not_boolean)
Weight = Annotated[float, _number, Field(ge=0, allow_inf_nan=False)]
"""A number of 0 or more."""
Positive = Annotated[float, _number, Field(gt=0, allow_inf_nan=False)]
"""A number above 0."""
Share = Annotated[float, _number, Field(gt=0, le=1)]
"""A number above 0, at most 1."""
Fraction = Annotated[float, _number, Field(ge=0, lt=1)]
"""A number from 0, below 1."""
Count = Annotated[int, _number, Field(ge=1)]
"""A whole number of 1 or more."""
Natural = Annotated[int, _number, Field(ge=0)]
"""A whole number of 0 or more."""


class Settings(BaseModel):
    """A group of settings: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def validate(model: type[M], values: Mapping[str, Any], where: str = "") -> M:
    """``values`` as a ``model``, or one line that says what is wrong.

    Args:
        model: The typed settings.
        values: What the user gave.
        where: Put before the key in the error, as in ``"method."``.

    Raises:
        InputError: A key does not exist (the nearest is named) or a value does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _in_one_line(error, model, where) from None


def _in_one_line(error: ValidationError, model: type[BaseModel], where: str) -> InputError:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    key = where + ".".join(path)
    if first["type"] == "extra_forbidden":
        return unknown("setting", key, known_keys(model, where))
    if first["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return InputError(
            f"{key} holds settings, got {first['input']!r}; set them as in {key}.name=..."
        )
    given = f", got {first['input']!r}" if first["type"] != "missing" else ""
    message = first["msg"].removeprefix("Value error, ")
    return InputError(f"{key}: {message[:1].lower()}{message[1:]}{given}")


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


def checked(init: Callable[P, None]) -> Callable[P, None]:
    """A constructor that validates its keyword-only arguments by their annotations.

    Example:
        >>> class Loss:
        ...     @checked
        ...     def __init__(self, *, temperature: Positive = 4.0) -> None: ...
        >>> Loss(temperature=0)
        Traceback (most recent call last):
        dskd.errors.InputError: temperature: input should be greater than 0, got 0
    """

    @functools.wraps(init)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        settings = validate(signature_settings(init), kwargs)
        kwargs.update(settings.model_dump())
        init(*args, **kwargs)

    return wrapper
