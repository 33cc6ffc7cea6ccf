"""Methods that are not part of this package: a class, an installed package, or a name of code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from dskd.errors import InputError
from dskd.methods.installed import descriptions
from dskd.models.user_code import import_code, refused_code

if TYPE_CHECKING:
    from dskd.methods.base import Method

GROUP = "dskd.methods"
"""The group of entry points in which an installed package names its methods."""
_GIVEN: dict[str, type[Method]] = {}
_CODE_ALLOWED: ContextVar[bool] = ContextVar("code_allowed", default=False)


@contextmanager
def code_allowed(allowed: bool) -> Iterator[None]:
    """Whether methods may be named as ``package.module:Class`` within the block.

    Args:
        allowed: What ``--allow-code`` or ``allow_code`` says.
    """
    token = _CODE_ALLOWED.set(allowed)
    try:
        yield
    finally:
        _CODE_ALLOWED.reset(token)


def give(kind: type[Method]) -> str:
    """Takes a class that a Python caller gave, and returns its name in a recipe: ``<MyMethod>``.

    Args:
        kind: A subclass of `dskd.methods.base.Method`.

    Raises:
        InputError: It is no method.
    """
    name = f"<{kind.__name__}>"
    _GIVEN[name] = _checked(kind, kind.__name__)
    return name


def installed() -> list[str]:
    """The names of the methods that installed packages bring."""
    return sorted(point.name for point in entry_points(group=GROUP))


def described(known: Sequence[str]) -> list[tuple[str, str]]:
    """These methods with their descriptions, see `dskd.methods.installed.descriptions`."""
    return list(descriptions(tuple(entry_points(group=GROUP)), known))


def is_named(name: str) -> bool:
    """Whether a name stands for a method outside this package, which may be missing here."""
    return ":" in name or name.startswith("<") or name in installed()


def is_missing(name: str) -> bool:
    """Whether a name stands for a class that another program gave, as a stored run may name it."""
    return name.startswith("<") and name not in _GIVEN


def find(name: str) -> type[Method]:
    """The method of this name (see `is_named`).

    Raises:
        InputError: It was given in Python and is not given here, code is not allowed, or it cannot
            be imported.
    """
    if name.startswith("<"):
        if name not in _GIVEN:
            plain = name.strip("<>")
            raise InputError(
                f"the method {plain} was given in Python; give it again, as in "
                f"dskd.distill(..., method={plain})"
            )
        return _GIVEN[name]
    points = list(entry_points(group=GROUP, name=name))
    if points:
        return _checked(import_code(points[0].value, "method", name), name)
    _refuse_settings(name)
    if not _CODE_ALLOWED.get():
        raise refused_code("method", name)
    return _checked(import_code(name, "method", name), name)


def _refuse_settings(name: str) -> None:
    """Refuses a method with settings, as comparisons name it: it is no name of code."""
    plain, *settings = name.split(":")
    if settings and all("=" in one for one in settings):
        apart = " ".join(f"method.{one}" for one in settings)
        raise InputError(
            f"the method {name!r} has settings, which stand apart here: method.name={plain} {apart}"
        )


def _checked(kind: object, name: str) -> type[Method]:
    """The class, if it is a method."""
    from dskd.methods.base import Method

    if not isinstance(kind, type) or not issubclass(kind, Method):
        raise InputError(f"{name} is no method; derive a class from dskd.methods.base.Method")
    return kind
