"""What a person sees while a run is on: progress bars and tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from dskd.engine.trainer import Trainer
from dskd.errors import printable
from dskd.runtime import distributed

REFRESH_SECONDS = 0.5
"""Between two readings of the loss: each reading waits for the device."""


class EpochBar:
    """The bar of a run: epochs done, loss, accuracy, images a second and time left."""

    def __init__(self, progress: Progress, task: TaskID, trainer: Trainer) -> None:
        self.progress, self.task, self.trainer = progress, task, trainer
        self._shown = 0.0

    def step(self) -> None:
        """Shows the state after a step, now and then."""
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
        """Shows the accuracy of the epoch that just ended."""
        self.progress.update(self.task, accuracy=f"accuracy {accuracy:.2f} %")


@contextmanager
def epoch_bar(trainer: Trainer, label: str) -> Iterator[EpochBar]:
    """A progress bar on stderr; nothing where stderr is no terminal, or another process's."""
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
    # Some versions of rich print an empty line for a bar that was never shown.
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


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table on stdout: drawn in a terminal, plain and never cut elsewhere.

    The first column is to the left; others are to the right where they hold numbers.
    """
    # Class names and paths are shown as they are, whatever brackets and colons they hold.
    console = Console(markup=False, emoji=False, highlight=False)
    rows = [[printable(cell) for cell in row] for row in rows]
    right = [i > 0 and all(_numeric(row[i]) for row in rows) for i in range(len(columns))]
    if console.is_terminal:
        drawn = Table(box=box.SIMPLE_HEAD)
        for name, is_right in zip(columns, right, strict=True):
            drawn.add_column(name, justify="right" if is_right else "left", overflow="fold")
        for row in rows:
            drawn.add_row(*row)
        console.print(drawn)
        return
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _numeric(cell: str) -> bool:
    return cell in ("", "-") or cell[:1].isdigit()
