"""The data of each seed of a comparison, where the seeds have splits of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from dskd.compare.grid import Grid
from dskd.errors import InputError

D = TypeVar("D")


class DataOfSeeds(Generic[D]):
    """The data of the runs: the same for all, or with a split for each seed (``split_seed`` None).

    Args:
        grid: The comparison.
        data: Of its first seed.
        load: Reads the data of a run from its recipe.

    Raises:
        InputError: The seeds have splits of their own, and a method learns from a teacher.
    """

    def __init__(self, grid: Grid, data: D, load: Callable[[Any], D]) -> None:
        learning = grid.recipe_with_teacher()
        if grid.splits_by_seed and learning is not None:
            raise InputError(
                f"{learning.method.name.rpartition('/')[2]} learns from a teacher, which would "
                "know test data of other seeds, since data.split_seed=null gives each seed a "
                "split; leave it out"
            )
        self._by_seed = grid.splits_by_seed
        self._kept = grid.recipe.seed, data
        self._load = load

    def __call__(self, recipe: Any) -> D:
        """The data of a run."""
        seed, data = self._kept
        if self._by_seed and recipe.seed != seed:
            data = self._load(recipe)
            self._kept = recipe.seed, data  # one is enough: the runs of a seed follow each other
        return data
