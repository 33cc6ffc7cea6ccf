"""Class names that can be told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def distinct(names: Sequence[str], tags: Sequence[str]) -> tuple[str, ...]:
    """The names, each that occurs more than once followed by its tag.

    Args:
        names: The names, one a class.
        tags: What tells classes of one name apart, one a class, all different.

    Example:
        >>> distinct(["crane", "ox", "crane"], ["n01", "n02", "n03"])
        ('crane (n01)', 'ox', 'crane (n03)')
    """
    counts = Counter(names)
    return tuple(
        f"{name} ({tag})" if counts[name] > 1 else name
        for name, tag in zip(names, tags, strict=True)
    )
