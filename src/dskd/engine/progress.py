"""The progress of a training run: a bar in a terminal, else one line for each epoch."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from typing import Literal

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
from dskd.errors import InputError
from dskd.runtime import distributed
from dskd.storage.metric_names import Metric, words

log = logging.getLogger("dskd")

REFRESH_SECONDS = 0.5
"""Least time between two updates. Each one reads the loss, and so waits for the device."""
Style = Literal["bar", "lines", "quiet"]
"""``bar``: a bar in a terminal, else lines. ``lines``: a line for each epoch. ``quiet``: none."""
_style: ContextVar[Style] = ContextVar("style", default="bar")


def shows_bars() -> bool:
    """Whether progress may be drawn, in a terminal."""
    return _style.get() == "bar"


@contextmanager
def python_output(verbose: int) -> Iterator[None]:
    """Has runs report on stderr as Python calls do.

    A program that has set up logging itself gets the lines as records of the logger ``dskd``.

    Args:
        verbose: 1 for a line for each epoch and for notes, 0 for warnings only.

    Raises:
        InputError: It is another number.
    """
    if verbose not in (0, 1):
        raise InputError(f"verbose: 1 for a line each epoch or 0 for none, got {verbose}")
    token, level, handler = _style.set("lines" if verbose else "quiet"), log.level, None
    if not log.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    if not verbose:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _style.reset(token)
        log.setLevel(level)
        if handler is not None:
            log.removeHandler(handler)


class EpochBar:
    """Shows epochs done, loss, accuracy, speed, time spent waiting for data, and remaining time.

    Args:
        progress: Where the bar is drawn.
        task: The task of the run.
        trainer: Whose progress is shown.
        metric: What is measured on the test split.
        samples: The word for samples.
    """

    def __init__(
        self,
        progress: Progress,
        task: TaskID,
        trainer: Trainer,
        metric: Metric = "accuracy",
        samples: str = "images",
    ) -> None:
        self.progress, self.task, self.trainer = progress, task, trainer
        self.measured, self.samples = words(metric), samples
        self._shown = 0.0
        self._start, self._steps_before = time.monotonic(), self._steps_done()

    def _steps_done(self) -> int:
        return self.trainer.epoch * self.trainer.steps + self.trainer.step

    def step(self) -> None:
        """Shows the state after a step, at most once in `REFRESH_SECONDS`."""
        trainer = self.trainer
        waited = time.monotonic() - self._shown >= REFRESH_SECONDS
        if self.progress.disable or not trainer.metrics.num_samples or not waited:
            return
        self._shown = time.monotonic()
        samples = distributed.world_size() * trainer.metrics.num_samples
        self.progress.update(
            self.task,
            completed=self._steps_done(),
            epoch=f"epoch {trainer.epoch + 1}/{trainer.epochs}",
            loss=f"loss {trainer.metrics.mean('train_loss'):.3f}",
            rate=f"{samples / max(trainer.seconds, 1e-9):,.0f} {self.samples}/s",
            waiting=f"{_percent(trainer.metrics.data_seconds, trainer.seconds)} waiting for data",
        )

    def epoch(self, row: Mapping[str, float]) -> None:
        """Shows the metrics of the epoch that just ended."""
        if (accuracy := row.get("test_accuracy")) is not None:  # not every epoch is evaluated
            measured = self.measured.removeprefix("test ")
            self.progress.update(self.task, accuracy=f"{measured} {accuracy:.2f} %")
        if self.progress.disable and _style.get() != "quiet" and distributed.is_rank_zero():
            (task,) = self.progress.tasks
            log.info("%s, %s", task.description, self._line(row))

    def _line(self, row: Mapping[str, float]) -> str:
        trainer = self.trainer
        samples = trainer.epoch_samples / max(row["seconds"], 1e-9)
        accuracy = row.get("test_accuracy")
        parts = [
            f"loss {row['train_loss']:.3f}",
            *([] if accuracy is None else [f"{self.measured} {accuracy:.2f} %"]),
            f"{samples:,.0f} {self.samples}/s",
            f"{_percent(row['data_seconds'], row['seconds'])} waiting for data",
        ]
        left = trainer.epochs * trainer.steps - self._steps_done()
        if left > 0:
            done = self._steps_done() - self._steps_before
            seconds = (time.monotonic() - self._start) / max(done, 1) * left
            parts.append(f"{timedelta(seconds=max(1, math.ceil(seconds)))} left")
        return f"epoch {trainer.epoch}/{trainer.epochs}: {', '.join(parts)}"


def _percent(part: float, whole: float) -> str:
    return f"{100 * min(1.0, part / max(whole, 1e-9)):.0f} %"


@contextmanager
def epoch_bar(
    trainer: Trainer, label: str, metric: Metric = "accuracy", samples: str = "images"
) -> Iterator[EpochBar]:
    """Shows the progress of a run on stderr while the block runs.

    The bar is hidden if stderr is no terminal, in Python calls, and in every process but the first.
    A line for each epoch is logged then.

    Args:
        trainer: Whose progress is shown.
        label: Text in front of the bar.
        metric: What is measured on the test split.
        samples: The word for samples.
    """
    console = Console(stderr=True)
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[epoch]}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[loss]}  {task.fields[accuracy]}  {task.fields[rate]}"),
        TextColumn("{task.fields[waiting]}"),
        TimeRemainingColumn(),
    ]
    hidden = not (console.is_terminal and shows_bars() and distributed.is_rank_zero())
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
            waiting="",
        )
        yield EpochBar(bar, task, trainer, metric, samples)
