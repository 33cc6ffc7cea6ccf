"""Log what a method has to say about the models and settings that it was given."""

from __future__ import annotations

import logging

from dskd.errors import as_given
from dskd.methods.base import Method

log = logging.getLogger("dskd")


def log_warnings(method: Method) -> None:
    """Logs each of the method's warnings in a line."""
    for line in method.warnings:
        log.warning(as_given(line))
