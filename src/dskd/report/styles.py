"""The style of each method in all charts: its colour, its dashes, its marker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        colour: A colour of the page's style sheet, which has a light and a dark shade: ``--blue``.
        dash: The dashes of its lines, as plotly names them.
        symbol: The symbol of its markers, as plotly names it.
        glyph: The same symbol as a character, for the legend.
    """

    colour: str
    dash: str
    symbol: str
    glyph: str


DASHES: Mapping[str, str] = MappingProxyType(
    {
        "solid": "",
        "dash": "7 4",
        "dot": "2 3",
        "dashdot": "7 3 2 3",
        "longdash": "12 4",
        "longdashdot": "12 3 2 3",
    }
)
"""Plotly's dashes, with the ``stroke-dasharray`` that draws them in the legend."""

_FIXED: Mapping[str, Style] = MappingProxyType(
    {
        "ce": Style("--ink", "dot", "circle-open", "○"),
        "kd": Style("--blue", "dash", "square", "■"),
        "dskd": Style("--vermillion", "solid", "diamond", "◆"),
    }
)
TEACHER = Style("--muted", "longdash", "star", "★")
_COLOURS = ("--green", "--purple", "--orange", "--sky", "--olive")
_SYMBOLS = (
    ("triangle-up", "▲"),
    ("triangle-down", "▼"),
    ("circle", "●"),
    ("square-open", "□"),
    ("diamond-open", "◇"),
    ("triangle-up-open", "△"),
    ("triangle-down-open", "▽"),
)


def styles_of(labels: Iterable[str]) -> dict[str, Style]:
    """A style for every label. ``ce``, ``kd`` and ``dskd`` always have the same ones.

    The numbers of colours, dashes and symbols have no common divisor, so that styles repeat only
    after 210 methods.

    Example:
        >>> styles_of(["kd", "at"])["at"]
        Style(colour='--green', dash='solid', symbol='triangle-up', glyph='▲')
    """
    found: dict[str, Style] = {}
    others = 0
    for label in labels:
        if label in _FIXED:
            found[label] = _FIXED[label]
            continue
        dash = list(DASHES)[others % len(DASHES)]
        symbol, glyph = _SYMBOLS[others % len(_SYMBOLS)]
        found[label] = Style(_COLOURS[others % len(_COLOURS)], dash, symbol, glyph)
        others += 1
    return found
