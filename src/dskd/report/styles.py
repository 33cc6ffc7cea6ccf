"""How a method looks, the same in every chart: its colour, its dashes, its marker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Look:
    """How a method is drawn, so that it is known by each of the three alone as far as they go.

    Attributes:
        colour: A colour of the page's style sheet, which knows light and dark: ``--blue``.
        dash: Of its lines, as plotly names it.
        symbol: Of its markers, as plotly names it.
        glyph: The same marker as a letter, for the legend.
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
"""Plotly's dashes, each as the ``stroke-dasharray`` of the legend's sample."""

_FIXED: Mapping[str, Look] = MappingProxyType(
    {
        "ce": Look("--ink", "dot", "circle-open", "○"),
        "kd": Look("--blue", "dash", "square", "■"),
        "dskd": Look("--vermillion", "solid", "diamond", "◆"),
    }
)
TEACHER = Look("--muted", "longdash", "star", "★")
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


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for every label: ``ce``, ``kd`` and ``dskd`` have their own, the others take turns.

    The numbers of colours, dashes and markers have no common divisor, so that it takes 210 methods
    until two look the same.

    Example:
        >>> looks(["kd", "at"])["at"]
        Look(colour='--green', dash='solid', symbol='triangle-up', glyph='▲')
    """
    found: dict[str, Look] = {}
    others = 0
    for label in labels:
        if label in _FIXED:
            found[label] = _FIXED[label]
            continue
        dash = list(DASHES)[others % len(DASHES)]
        symbol, glyph = _SYMBOLS[others % len(_SYMBOLS)]
        found[label] = Look(_COLOURS[others % len(_COLOURS)], dash, symbol, glyph)
        others += 1
    return found
