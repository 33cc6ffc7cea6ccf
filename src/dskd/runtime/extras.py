"""Import libraries that only some features need."""

from __future__ import annotations

import importlib
from typing import Any

from dskd.errors import InputError


def import_extra(library: str, extra: str, needed: str) -> Any:
    """Imports a library that an extra of this package installs.

    Args:
        library: The name of its module.
        extra: The extra.
        needed: The start of the message, as in ``tuning needs Optuna, which is not installed;``.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError:
        raise InputError(f"{needed} pip install 'dskd[{extra}]'") from None
