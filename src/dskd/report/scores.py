"""The scores of students by class, and their predictions drawn over images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassScores:
    """The scores of students on each class.

    Attributes:
        text: What was measured, as sentences.
        measures: The names of the scores.
        rows: Label of a method, name of a class, and its scores; None for a score without a value.
    """

    text: str
    measures: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[float | None, ...]], ...]

    @property
    def of_one(self) -> list[tuple[str, float]]:
        """The classes of a single method by their first score, lowest first; empty for several."""
        if len({label for label, _, _ in self.rows}) != 1:
            return []
        known = [(name, values[0]) for _, name, values in self.rows if values[0] is not None]
        return sorted(known, key=lambda one: one[1])


@dataclass(frozen=True)
class Drawings:
    """Predictions drawn over images of the test split.

    Attributes:
        text: What is drawn, as sentences.
        columns: The heading of each column.
        rows: The name of each image, and its drawings as data URIs, one for each column.
        colours: The colour of each class, as in ``#ff4040``.
    """

    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    colours: Mapping[str, str]
