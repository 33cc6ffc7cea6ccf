"""The rows of the benchmark: steps of the reference and steps of this package."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from interleave import CountedSteps, TrainerSteps
from noise import noise_trainer
from reference import reference_steps
from subprocess_steps import SubprocessSteps

from dskd.config.recipe import load
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.settings import Precision

METHODS = ("ce", "kd", "dskd", "at", "crd", "reviewkd")
"""The student alone, KD, DSKD, and three methods that read features: attention maps, a contrast
with a memory of images, and a fusion of stages."""
COMPILED = ("kd", "dskd")
"""Methods that are also timed with compiled steps."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class Row:
    """A row of the benchmark before it is timed.

    Attributes:
        pair: Teacher and student.
        name: ``reference-ce``, ``reference-kd``, or a method, with ``-compiled`` or ``-cached``.
        precision: Number format of the forward passes.
        runner: Takes the steps.
        build_seconds: Time to build it.
    """

    pair: str
    name: str
    precision: Precision
    runner: CountedSteps
    build_seconds: float

    @property
    def key(self) -> str:
        """A name that no other row has."""
        return f"{self.pair} {self.name} {self.precision}"


def rows_of(pair: str, data: Dataset, batch_size: int) -> Iterator[Row]:
    """The rows of a pair. Those of the reference come first.

    Args:
        pair: Teacher and student.
        data: The images.
        batch_size: Images in a step.
    """
    yield from _reference_rows(pair, len(data.train), batch_size)
    variants: list[tuple[str, Precision, str, tuple[str, ...]]] = [
        (m, p, m, ()) for p in PRECISIONS for m in METHODS
    ]
    variants += [(m, "bfloat16", f"{m}-compiled", ("train.compile=true",)) for m in COMPILED]
    for method, precision, name, others in variants:
        start = time.perf_counter()
        trainer = noise_trainer(recipe_of(pair, method, precision, batch_size, *others), data)
        seconds = time.perf_counter() - start
        yield Row(pair, name, precision, TrainerSteps(trainer), seconds)


def recipe_of(
    pair: str, method: str, precision: Precision, batch_size: int, *others: str
) -> Recipe:
    """The shipped recipe of a pair, with the default settings of a method.

    Args:
        pair: Teacher and student.
        method: The method.
        precision: Number format of the forward passes.
        batch_size: Images in a step.
        others: More overrides.
    """
    chosen = (
        f"method={{name: {method}}}",
        f"train.precision={precision}",
        f"train.batch_size={batch_size}",
        "train.device=cpu",
    )
    return load(f"cifar100/{pair}", [*chosen, *others])


def _reference_rows(pair: str, images: int, batch_size: int) -> Iterator[Row]:
    for name in ("ce", "kd"):
        start = time.perf_counter()
        runner = SubprocessSteps(partial(reference_steps, pair, name, images, batch_size))
        seconds = time.perf_counter() - start
        yield Row(pair, f"reference-{name}", "float32", runner, seconds)
