"""What a comparison trains: some methods at some seeds, on one recipe."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dskd import methods
from dskd.compare.summary import baseline_of
from dskd.compare.variants import MethodVariant, Weights, method_variants
from dskd.config.contradictions import check_shared, keys_of, warn_of_unused_training
from dskd.config.overrides import method_for_all
from dskd.config.recipe import Composed, compose
from dskd.errors import InputError
from dskd.storage.run_files import LAST, TEACHER

log = logging.getLogger("dskd")


@dataclass(frozen=True)
class Grid:
    """Methods and seeds on one recipe: one training run for each pair.

    Attributes:
        recipe: What all runs share, a `Recipe` or that of another task. Its method and ``out`` are
            ignored.
        variants: The methods, each with its settings.
        seeds: Every method is trained at every seed.
        weights: How the loss weights of the methods were chosen.
        path: The folder of the comparison.
        share_teacher: Whether the students of a seed train in lockstep and share one forward pass
            of the teacher per step. If not, they train one after the other, each with its own
            forward passes. The results are the same.
    """

    recipe: Any
    variants: tuple[MethodVariant, ...]
    seeds: tuple[int, ...]
    weights: Weights
    path: Path
    share_teacher: bool = True

    @property
    def task(self) -> str:
        """The task of the recipe; empty for images."""
        return str(getattr(self.recipe, "task", ""))

    @property
    def baseline(self) -> str:
        """Label of the method that the table compares the others with."""
        return baseline_of(self.task)

    @property
    def splits_by_seed(self) -> bool:
        """Whether each seed has a split of the data of its own."""
        return getattr(self.recipe.data, "split_seed", 0) is None

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(self.variants) * len(self.seeds)

    def folder(self, variant: MethodVariant, seed: int) -> Path:
        """The folder of one run."""
        return self.path / variant.folder / f"seed{seed}"

    def recipe_of(self, variant: MethodVariant, seed: int) -> Any:
        """The recipe of one run, with the teacher of the comparison."""
        return self.recipe.changed(
            method=variant.method,
            teacher=self.trained_teacher,
            seed=seed,
            out=self.folder(variant, seed),
        )

    @property
    def trained_teacher(self) -> Any:
        """The teacher once it is trained: with its checkpoint, if the comparison trains it."""
        teacher = self.recipe.teacher
        if teacher is None or teacher.is_given:
            return teacher
        found = {"checkpoint": self.path / TEACHER / LAST, "pretrained": False}
        own = {key: value for key, value in found.items() if key in type(teacher).model_fields}
        return teacher.model_copy(update=own)

    def recipe_with_teacher(self) -> Any:
        """The recipe with a method that needs the teacher; None if no method needs one."""
        for variant in self.variants:
            if methods.find(variant.method.name).needs_teacher:
                return self.recipe.changed(method=variant.method)
        return None

    def recipe_of_all(self) -> Any:
        """The recipe by which images and teacher are prepared for all methods."""
        return self.recipe_with_teacher() or self.recipe.changed(method=self.variants[0].method)


def plan(
    recipe: Any,
    names: Iterable[str],
    path: Path,
    *,
    seeds: int,
    weights: Weights = "equal",
    share_teacher: bool = True,
) -> Grid:
    """The grid of the named methods and of ``seeds`` seeds, starting at ``recipe.seed``.

    Args:
        recipe: What all runs share.
        names: The methods, see `dskd.compare.variants.method_variants`.
        path: The folder of the comparison.
        seeds: The number of seeds.
        weights: ``equal`` or ``literature``.
        share_teacher: See `Grid`.

    Raises:
        InputError: A name does not exist, a method needs a teacher and the recipe has none, or
            ``seeds`` is below 1.
    """
    variants = method_variants(names, recipe, weights)
    if not isinstance(seeds, int) or seeds < 1:
        raise InputError(
            f"seeds: a number of at least 1 is needed, got {seeds!r}; seed sets the first of them"
        )
    if recipe.teacher is None:
        for variant in variants:
            if methods.find(variant.method.name).needs_teacher:
                raise InputError(
                    f"the method {variant.label!r} needs a teacher; give one, as in "
                    f"{recipe.TEACHER}"
                )
    numbers = tuple(range(recipe.seed, recipe.seed + seeds))
    return Grid(recipe, tuple(variants), numbers, weights, path, share_teacher)


def load_plan(
    recipe_name: str | None,
    overrides: Iterable[str],
    names: Iterable[str],
    out: Path | None,
    **options: Any,
) -> Grid:
    """Like `plan`, from the arguments of the command line.

    Args:
        recipe_name: A shipped recipe or a YAML file; None for no recipe (see
            `dskd.config.recipe.load`).
        overrides: Settings as ``key=value``.
        names: The methods.
        out: The folder of the comparison; None for ``runs/compare/<recipe>``.
        options: Further arguments of `plan`.

    Raises:
        InputError: A name or a setting does not exist or does not fit.
    """
    overrides = list(overrides)
    check_shared(overrides)
    composed = compose(recipe_name, overrides)
    method_for_all(composed.values, "dskd", "ce")
    path = folder_of_runs(composed, recipe_name, out, "compare", "comparison")
    recipe = composed.resolved()
    warn_of_unused_training(recipe.teacher, keys_of(overrides))
    return plan(recipe, names, path, **options)


def folder_of_runs(
    composed: Composed, recipe_name: str | None, out: Path | None, verb: str, whole: str
) -> Path:
    """The folder of many runs. A line says so if the recipe has one for a single run.

    Args:
        composed: The recipe.
        recipe_name: As for `load_plan`.
        out: The folder that was asked for; None for ``runs/<verb>/<recipe>``.
        verb: Of the command.
        whole: What the runs are together.
    """
    label = (recipe_name or composed.folder.name).removesuffix(".yaml").removesuffix(".yml")
    path = out or Path("runs") / verb / label.strip("./").replace("/", "-")
    if composed.values.get("out"):
        log.info("out of %s is that of a single run; this %s is in %s", recipe_name, whole, path)
    return path
