"""Typed settings: number types, validation, and one-line errors.

The settings of a recipe are classes (`Settings`). The settings of a method or loss are the
keyword-only arguments of its signature (`checked`).
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

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
F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)


def _not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


def expand_path(value: Any) -> Any:
    """A user's text or path as a path, with ``~`` for the home folder; else the value itself.

    Raises:
        ValueError: It is no path.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError("a path is needed")
    try:
        return Path(value).expanduser() if isinstance(value, str) else value
    except RuntimeError:
        raise ValueError(
            "that user has no home folder; write the whole path, or ./~ for a file of that name"
        ) from None


_number = BeforeValidator(_not_boolean)
_LARGEST = 10**9
Number = Annotated[float, _number, Field(allow_inf_nan=False)]
"""A number."""
Weight = Annotated[float, _number, Field(ge=0, allow_inf_nan=False)]
"""A number of 0 or more."""
Positive = Annotated[float, _number, Field(gt=0, allow_inf_nan=False)]
"""A number above 0."""
Rate = Annotated[float, _number, Field(gt=0, le=1e6)]
"""A learning rate: above 0, and small enough for weights in float32."""
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
"""A whole number of 0 or more without the limit of `Natural`, such as a number of bytes."""
Percent = Annotated[float, _number, Field(ge=0, le=100)]
"""A number from 0 to 100."""
Seed = Annotated[int, _number, Field(ge=0, lt=2**63)]
"""A seed of a random generator: a whole number of 0 or more."""
MAX_LOSS = 0.5
"""The loss of accuracy by early exits that is accepted by default, in percentage points."""
PathSetting = Annotated[Path, BeforeValidator(expand_path)]
"""A path of a file or folder; ``~`` is the home folder."""

# Choices. They stand here so that a recipe can be read without importing torch.
DeviceName = Literal["auto", "cpu", "cuda"]
"""A device; ``auto`` is a GPU if there is one, else the CPU."""
Precision = Literal["float32", "bfloat16", "float16"]
"""Number format of the forward passes."""
OwnOptimizer = Literal["sgd", "adamw", "dot"]
"""An optimizer that does not come from timm."""
Schedule = Literal["step", "cosine"]
"""A learning-rate schedule."""


class Settings(BaseModel):
    """A group of settings. Unknown keys are errors, and values are read-only."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def is_default(self, key: str) -> bool:
        """Whether a setting has its default value."""
        field = type(self).model_fields[key]
        return bool(getattr(self, key) == field.get_default(call_default_factory=True))


def validate(
    model: type[M], values: Mapping[str, Any], where: str = "", known: Iterable[str] = ()
) -> M:
    """Checks a user's values and fills in defaults.

    Args:
        model: The typed settings.
        values: Values by key.
        where: Put in front of each key in an error, as in ``"method."``.
        known: Keys that an error may suggest. The default is all keys of ``model``.

    Returns:
        The settings as an instance of ``model``.

    Raises:
        InputError: A key does not exist, or a value does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # What is missing may have been given under a name that does not exist.
        first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
        raise _in_one_line(first, where, [*known] or known_keys(model, where)) from None


# Replacements for messages in which pydantic names Python types.
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
    """Words an error of pydantic as key, problem and value."""
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
    if (
        kind in ("string_type", "path_type")
        and type(given) in (int, float)
        and abs(given) < 1e20  # a message is one short line
    ):
        fix = f"; put it in quotes if that is its name, as in {key.rpartition('.')[2]}: '{given}'"
    # A check of a whole section names the setting itself.
    got = "" if isinstance(given, Mapping) and kind == "value_error" else f", got {brief(given)}"
    return InputError(f"{key}: {message[:1].lower()}{message[1:]}{got}{fix}")


def unknown_key(key: str, known: Iterable[str]) -> InputError:
    """The error for a setting that does not exist. It suggests a setting that does.

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
    """Lists all keys of the settings, with dots between levels."""
    keys = []
    for name in model.model_fields:
        section = settings_of(model, name)
        keys += known_keys(section, f"{where}{name}.") if section else [f"{where}{name}"]
    return keys


def settings_of(model: type[BaseModel], key: str) -> type[Settings] | None:
    """The class of the settings that a key holds; None if it holds a single value."""
    field = model.model_fields.get(key)
    inner = field.annotation if field else None
    return next((t for t in (inner, *getattr(inner, "__args__", ())) if _is_settings(t)), None)


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def setting_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The settings of a function or class: its keyword-only parameters, by name.

    Their annotations are evaluated. Settings from `takes_settings_of` are included.
    """
    plain = inspect.unwrap(_constructor(function))
    annotations = inspect.get_annotations(plain, eval_str=True)
    own = {
        name: parameter.replace(annotation=annotations[name])
        for name, parameter in inspect.signature(plain).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name in annotations
    }
    source = settings_source(function)
    return (setting_parameters(source) if source else {}) | own


def _constructor(function: Callable[..., Any]) -> Callable[..., Any]:
    return function.__init__ if isinstance(function, type) else function  # type: ignore[misc]


@functools.cache
def signature_settings(function: Callable[..., Any]) -> type[Settings]:
    """The settings of a function or constructor as a typed model."""
    fields: dict[str, Any] = {
        name: (parameter.annotation, parameter.default)
        for name, parameter in setting_parameters(function).items()
    }
    plain = {"use_attribute_docstrings": False}  # it searches the source of every caller
    return create_model(function.__qualname__, __base__=Settings, __cls_kwargs__=plain, **fields)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function or constructor validate its keyword-only arguments by their annotations.

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


def takes_settings_of(other: Callable[..., Any]) -> Callable[[F], F]:
    """Declares that a function's ``**settings`` are the settings of another.

    They are then written down once, and the function's signature lists them.

    Args:
        other: The function or class whose keyword-only parameters are the settings. Its docstring
            describes them (`settings_source`).

    Example:
        >>> class Loss:
        ...     def __init__(self, *, temperature: Positive = 4.0) -> None: ...
        >>> class Method:
        ...     @checked
        ...     @takes_settings_of(Loss)
        ...     def __init__(self, *, weight: Weight = 1.0, **settings: Any) -> None:
        ...         self.loss = Loss(**settings)
        >>> list(signature_settings(Method.__init__).model_fields)
        ['temperature', 'weight']
    """

    def declare(function: F) -> F:
        signature, inherited = inspect.signature(function), inspect.signature(other)
        positional, own = _by_kind(signature)
        settings = {p.name: p for p in (*_by_kind(inherited)[1], *own)}
        merged = signature.replace(parameters=[*positional, *settings.values()])
        function.__signature__ = merged  # type: ignore[attr-defined]
        function.__settings_source__ = other  # type: ignore[attr-defined]
        return function

    return declare


def _by_kind(
    signature: inspect.Signature,
) -> tuple[list[inspect.Parameter], list[inspect.Parameter]]:
    """The positional and the keyword-only parameters; ``**settings`` is neither."""
    kinds = inspect.Parameter
    parameters = [p for p in signature.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
    keywords = [p for p in parameters if p.kind is kinds.KEYWORD_ONLY]
    return [p for p in parameters if p not in keywords], keywords


def settings_source(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """What `takes_settings_of` declared for a function or class; None if nothing."""
    declared = _constructor(function)
    source: Callable[..., Any] | None = getattr(declared, "__settings_source__", None)
    return source
