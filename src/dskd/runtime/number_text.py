"""Numbers as people read them."""

from __future__ import annotations

import math


def rounded(value: float, digits: int = 3) -> str:
    """A number with so many significant digits; a large one in full, without an exponent.

    Args:
        value: The number.
        digits: Significant digits of a number that has no more before its point.

    Example:
        >>> [rounded(value) for value in (0.04567, 17.6, 123.4, 1180.2, 2e6)]
        ['0.0457', '17.6', '123', '1,180', '2,000,000']
        >>> rounded(126.0, digits=2), rounded(math.nan)
        ('126', 'nan')
    """
    if not math.isfinite(value) or abs(value) < 10 ** (digits - 1):
        return f"{value:.{digits}g}"
    return f"{value:,.0f}"
