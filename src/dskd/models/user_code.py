"""Import code that a user names: a function that builds a model, or the class of a method."""

from __future__ import annotations

import importlib
from typing import Any

from dskd.errors import InputError, first_line, option


def refused_code(what: str, name: str) -> InputError:
    """The error about code that may not run.

    Args:
        what: ``model`` or ``method``.
        name: As the user gave it.
    """
    return InputError(
        f"the {what} {name!r} would run your own code; if you trust it, add {option('allow_code')}"
    )


def import_code(path: str, what: str, name: str) -> Any:
    """Imports code that the user named and allowed.

    Args:
        path: ``package.module:object``.
        what: ``model`` or ``method``, for the error.
        name: As the user gave it, for the error.

    Raises:
        InputError: It cannot be imported.

    Example:
        >>> import_code("math:sqrt", "model", "math:sqrt")(4.0)
        2.0
    """
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise InputError(
            f"cannot import the {what} {name!r}: {first_line(error)}; is its folder on PYTHONPATH?"
        ) from error
    except Exception as error:  # a module may raise anything
        raise InputError(f"cannot import the {what} {name!r}: {first_line(error)}") from error
