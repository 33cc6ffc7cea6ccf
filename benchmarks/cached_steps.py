"""Steps with cached teacher outputs: the cache is filled first, then the steps are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from interleave import TrainerSteps
from noise import noise_data, noise_trainer
from results import Result
from rows import Row, recipe_of

from dskd.config.schema import Recipe
from dskd.engine.trainer import Trainer
from dskd.teacher.cache import CachedOutputs
from dskd.teacher.outputs import CacheCounts

CACHES = {"kd": "logits", "dskd": "features"}
"""The cache of each method: the logits of all views, or all outputs that it reads of some views."""


class CachedSteps:
    """The rows of a pair with a full cache, and the cost of filling it.

    Args:
        pair: Teacher and student.
        batch_size: Images in a step.
        steps: Steps of the epoch that is cached and then repeated. It has no other images, because
            the time of a step does not depend on them.
        folder: The folder of the caches.
    """

    def __init__(self, pair: str, batch_size: int, steps: int, folder: Path) -> None:
        self.pair, self.batch_size, self.folder = pair, batch_size, folder
        self.data = noise_data(batch_size * steps)
        self._fills: list[Result] = []
        self._warm: list[CachedOutputs] = []

    def rows(self) -> Iterator[Row]:
        """Fills each cache by an epoch of a run, and yields the same epoch of another run."""
        for method, cache in CACHES.items():
            settings = (f"teacher.cache={cache}", f"teacher.cache_dir={self.folder}")
            recipe = recipe_of(self.pair, method, "bfloat16", self.batch_size, *settings)
            name = f"{method}-cached"
            fill = {"pair": self.pair, "row": name, "cache": cache} | self._fill(recipe)
            self._fills.append(fill)
            start = time.perf_counter()
            trainer = noise_trainer(recipe, self.data)
            seconds = time.perf_counter() - start
            self._warm.append(_started(trainer))
            yield Row(self.pair, name, "bfloat16", TrainerSteps(trainer), seconds)

    def results(self) -> list[Result]:
        """The cost of filling each cache, and the share of images that were found afterwards."""
        return [
            fill | {"warm_hits": _hit_rate(outputs)}
            for fill, outputs in zip(self._fills, self._warm, strict=True)
        ]

    def _fill(self, recipe: Recipe) -> Result:
        trainer = noise_trainer(recipe, self.data)
        outputs = _started(trainer)
        runner, seconds, teacher = TrainerSteps(trainer), list[float](), list[float]()
        for _ in range(trainer.steps):
            start = time.perf_counter()
            teacher.append(runner.step())
            seconds.append(time.perf_counter() - start)
        return {
            "images": len(self.data.train),
            "views": outputs.views,
            "fill_seconds": sum(teacher),
            "cold_step_seconds": statistics.median(seconds),
            "cold_hits": _hit_rate(outputs),
            "bytes_a_view": outputs.records.bytes_a_record,
        }


def _started(trainer: Trainer) -> CachedOutputs:
    """The cached outputs of a trainer, with the counts at 0."""
    outputs = trainer.teacher_outputs
    assert isinstance(outputs, CachedOutputs), "the recipe has a cache"
    outputs.cache_counts = CacheCounts()
    return outputs


def _hit_rate(outputs: CachedOutputs) -> float:
    return outputs.cache_counts.hit_rate if outputs.cache_counts else 0.0
