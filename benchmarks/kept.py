"""Steps from kept teacher answers, by the recipe's own settings: filled first, then taken warm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from method_cost import noise, trainer_of
from results import Result
from rows import Row, recipe_of
from turns import Training

from dskd.config.schema import Recipe
from dskd.engine.trainer import Trainer
from dskd.teacher.cache import CachedOutputs
from dskd.teacher.outputs import CacheCounts

KEPT = {"kd": "logits", "dskd": "bank"}
"""What is kept for which method: the logits of all views, or all that it reads of some."""
CHECK_BYTES = 8
"""That a store holds beside each record."""


class Kept:
    """The warm rows of a pair, and what filling took.

    Args:
        pair: Teacher and student.
        batch_size: Images a step.
        steps: Of the epoch that is filled and then taken again and again. Its images are all
            there are: what a step takes does not depend on others.
        folder: Where the answers are kept.
    """

    def __init__(self, pair: str, batch_size: int, steps: int, folder: Path) -> None:
        self.pair, self.batch_size, self.folder = pair, batch_size, folder
        self.data = noise(batch_size * steps)
        self._fills: list[Result] = []
        self._warm: list[CachedOutputs] = []

    def rows(self) -> Iterator[Row]:
        """Fills each store by an epoch of a run, and gives the same epoch of another run."""
        for method, keep in KEPT.items():
            settings = (f"teacher.cache={keep}", f"teacher.cache_dir={self.folder}")
            recipe = recipe_of(self.pair, method, "bfloat16", self.batch_size, *settings)
            name = f"{method}-kept"
            self._fills.append({"pair": self.pair, "row": name, "cache": keep} | self._fill(recipe))
            start = time.perf_counter()
            trainer = trainer_of(recipe, self.data)
            seconds = time.perf_counter() - start
            self._warm.append(_begun(trainer))
            yield Row(self.pair, name, "bfloat16", Training(trainer), seconds)

    def results(self) -> list[Result]:
        """What filling took, and how many of the images were found filled since."""
        return [
            fill
            | {
                "warm_hits": teacher_outputs.cache_counts.hit_rate
                if teacher_outputs.cache_counts
                else 0.0
            }
            for fill, teacher_outputs in zip(self._fills, self._warm, strict=True)
        ]

    def _fill(self, recipe: Recipe) -> Result:
        trainer = trainer_of(recipe, self.data)
        teacher_outputs = _begun(trainer)
        runner, seconds, teacher = Training(trainer), list[float](), list[float]()
        for _ in range(trainer.steps):
            start = time.perf_counter()
            teacher.append(runner.step())
            seconds.append(time.perf_counter() - start)
        return {
            "images": len(self.data.train),
            "views": teacher_outputs.views,
            "fill_seconds": sum(teacher),
            "cold_step_seconds": statistics.median(seconds),
            "cold_hits": teacher_outputs.cache_counts.hit_rate
            if teacher_outputs.cache_counts
            else 0.0,
            "bytes_a_view": 2 * teacher_outputs.records.words + CHECK_BYTES,
        }


def _begun(trainer: Trainer) -> CachedOutputs:
    """A trainer's cached outputs, with nothing counted so far."""
    teacher_outputs = trainer.teacher_outputs
    assert isinstance(teacher_outputs, CachedOutputs), "the recipe keeps answers"
    teacher_outputs.cache_counts = CacheCounts()
    return teacher_outputs
