"""Refusing, before the work starts, what does not fit into memory."""

from __future__ import annotations

import psutil

from dskd.errors import InputError

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def require_memory(needed: int, what: str) -> None:
    """Compare ``needed`` with the memory that is free now.

    Args:
        needed: Bytes that are about to be held.
        what: What they are, the subject of the error.

    Raises:
        InputError: There is less memory than that; both sizes are named.
    """
    available = int(psutil.virtual_memory().available)
    if needed > available:
        raise InputError(
            f"{what} need {readable(needed)} of memory, but {readable(available)} are available; "
            "give a smaller data.size, or free memory"
        )


def readable(count: int) -> str:
    """A number of bytes for people.

    Example:
        >>> readable(1536)
        '1.5 KiB'
    """
    if count < 1024:
        return f"{count} bytes"
    step = min((count.bit_length() - 1) // 10, len(_UNITS))
    return f"{count / 1024**step:.1f} {_UNITS[step - 1]}"
