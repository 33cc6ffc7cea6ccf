"""How numbers and verdicts appear on the pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dskd.compare.statistics import Difference

LEVEL = 0.05
"""A difference is significant if its corrected p-value is below this."""


def verdict(row: Mapping[str, Any]) -> str:
    """The verdict that the protocol allows: better, worse, or none.

    Args:
        row: A row, compared with the baseline of its page.

    Example:
        >>> verdict({"gap": 1.0, "gap_half": 0.5, "p_holm": 0.01})
        'better'
    """
    gap, half, p = row["gap"], row["gap_half"], row["p_holm"]
    if gap is None or half is None or p is None or p >= LEVEL or abs(gap) <= half:
        return ""
    return "better" if gap > 0 else "worse"


def as_sentence(text: str) -> str:
    """A text that begins with a capital letter and ends with a full stop.

    Example:
        >>> as_sentence("masks only: better")
        'Masks only: better.'
    """
    return f"{text[0].upper()}{text[1:]}."


def number(mean: float | None, half: float | None, form: str = ".2f") -> str:
    """A mean and half the width of its interval: ``+1.25 ± 0.40``.

    Args:
        mean: The mean; None gives an empty text.
        half: Half the width; None leaves it out.
        form: The format of the mean.

    Example:
        >>> number(1.25, 0.4, "+.1f"), number(1.25, None), number(None, None)
        ('+1.2 ± 0.4', '1.25', '')
    """
    if mean is None:
        return ""
    return f"{mean:{form}}" + ("" if half is None else f" ± {half:{form.removeprefix('+')}}")


def p_text(value: float | None) -> str:
    """A p-value as text.

    Args:
        value: The p-value; None gives an empty text.

    Example:
        >>> p_text(0.0123), p_text(0.0001)
        ('0.012', '< 0.001')
    """
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_equation(value: float) -> str:
    """A p-value in a sentence.

    Args:
        value: The p-value.

    Example:
        >>> p_equation(0.0123), p_equation(0.0001)
        ('p = 0.012', 'p < 0.001')
    """
    text = p_text(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def gap_text(gap: Difference) -> str:
    """A mean difference with half the width of its interval.

    Args:
        gap: Of two methods at the same seeds.
    """
    return number(gap.interval.mean, gap.interval.half, "+.1f")


def gap_verdict(gap: Difference, p_holm: float | None) -> str:
    """The `verdict` on a difference.

    Args:
        gap: Of two methods at the same seeds.
        p_holm: Its corrected p-value.
    """
    return verdict({"gap": gap.interval.mean, "gap_half": gap.interval.half, "p_holm": p_holm})


def gap_sentence(gap: Difference, p_holm: float | None) -> str:
    """A difference in a sentence, with its corrected p-value.

    Args:
        gap: Of two methods at the same seeds.
        p_holm: Its corrected p-value; None if none can be computed.
    """
    if p_holm is None:
        return f"{gap_text(gap)} points, without a test"
    said = "significant" if gap_verdict(gap, p_holm) else "not significant"
    return f"{gap_text(gap)} points, {said} ({p_equation(p_holm)})"
