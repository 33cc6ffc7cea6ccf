"""The progress bar of a training run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from dskd.engine.trainer import Trainer
from dskd.runtime import distributed

REFRESH_SECONDS = 0.5
"""Least time between two updates. Each one reads the loss, and so waits for the device."""


class EpochBar:
    """Shows epochs done, loss, accuracy, images per second and remaining time."""

    def __init__(self, progress: Progress, task: TaskID, trainer: Trainer) -> None:
        self.progress, self.task, self.trainer = progress, task, trainer
        self._shown = 0.0

    def step(self) -> None:
        """Shows the state after a step, at most once in `REFRESH_SECONDS`."""
        trainer = self.trainer
        waited = time.monotonic() - self._shown >= REFRESH_SECONDS
        if self.progress.disable or not trainer.metrics.num_samples or not waited:
            return
        self._shown = time.monotonic()
        rate = distributed.world_size() * trainer.metrics.num_samples / max(trainer.seconds, 1e-9)
        self.progress.update(
            self.task,
            completed=trainer.epoch * trainer.steps + trainer.step,
            epoch=f"epoch {trainer.epoch + 1}/{trainer.epochs}",
            loss=f"loss {trainer.metrics.mean('train_loss'):.3f}",
            rate=f"{rate:,.0f} images/s",
        )

    def epoch(self, accuracy: float) -> None:
        """Shows the accuracy after the epoch that just ended."""
        self.progress.update(self.task, accuracy=f"accuracy {accuracy:.2f} %")


@contextmanager
def epoch_bar(trainer: Trainer, label: str) -> Iterator[EpochBar]:
    """Shows a progress bar on stderr while the block runs.

    The bar is hidden if stderr is no terminal, and in every process but the first.

    Args:
        trainer: Whose progress is shown.
        label: Text in front of the bar.
    """
    console = Console(stderr=True)
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[epoch]}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[loss]}  {task.fields[accuracy]}  {task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    hidden = not console.is_terminal or not distributed.is_rank_zero()
    bar = Progress(*columns, console=console, disable=hidden, transient=True)
    # Some versions of rich print an empty line for a hidden bar.
    with nullcontext() if bar.disable else bar:
        task = bar.add_task(
            label,
            total=trainer.epochs * trainer.steps,
            completed=trainer.epoch * trainer.steps + trainer.step,
            epoch="",
            loss="",
            accuracy="",
            rate="",
        )
        yield EpochBar(bar, task, trainer)
