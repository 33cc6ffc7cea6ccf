"""Refuse, before the work starts, data that does not fit into memory."""

from __future__ import annotations

import psutil

from dskd.errors import InputError

OR_STREAM = "give a smaller data.size, set data.loading=stream"
"""A fix for `require_memory`, for images that can be streamed."""
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def require_memory(needed: int, what: str, fix: str = "give a smaller data.size") -> None:
    """Refuses to allocate more memory than is available.

    Args:
        needed: Number of bytes that are about to be allocated.
        what: What needs them: the subject of the error, in the plural.
        fix: What the user can do, besides freeing memory.

    Raises:
        InputError: Less memory is available; the message gives both sizes.
    """
    available = int(psutil.virtual_memory().available)
    if needed > available:
        raise InputError(
            f"{what} need {readable(needed)} of memory, but {readable(available)} are available; "
            f"{fix}, or free memory"
        )


def readable(count: int) -> str:
    """Formats a number of bytes.

    Example:
        >>> readable(1536)
        '1.5 KiB'
    """
    if count < 1024:
        return f"{count} bytes"
    step = min((count.bit_length() - 1) // 10, len(_UNITS))
    return f"{count / 1024**step:.1f} {_UNITS[step - 1]}"
