"""The progress of a running comparison: a live table, or log lines if there is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dskd.compare import columns
from dskd.compare.grid import Grid
from dskd.compare.lockstep import Callback, RunProgress
from dskd.compare.reader import read_comparison, read_result
from dskd.compare.summary import Summary, summarize
from dskd.engine.progress import shows_bars
from dskd.errors import InputError
from dskd.storage.metric_names import Metric, in_text

log = logging.getLogger("dskd")
REDRAW_SECONDS = 0.5


class LogLines:
    """Logs a line for each run that ends."""

    def on_step(self, run: RunProgress) -> None:
        """Logs nothing."""

    def on_end(self, run: RunProgress, failure: str | None) -> None:
        """Logs the test accuracy, or why the run failed."""
        if failure is None:  # a run that had no step left has no metrics here
            outcome = f"{read_result(run.folder)['test_accuracy']:.2f} %"
        else:
            outcome = f"failed: {failure}"
        log.info("%s, seed %d: %s", run.label, run.seed, outcome)


class LiveTable:
    """Draws the results so far and the position of each running student.

    Args:
        grid: The comparison.
        live: Where it is drawn.
    """

    def __init__(self, grid: Grid, live: Live) -> None:
        self.grid, self.live = grid, live
        self.running: dict[tuple[str, int], RunProgress] = {}
        self.summaries = self._summaries()
        self.drawn = 0.0

    def on_step(self, run: RunProgress) -> None:
        """Redraws the table if the last time is long enough ago."""
        self.running[run.label, run.seed] = run
        if time.monotonic() - self.drawn > REDRAW_SECONDS:
            self.draw()

    def on_end(self, run: RunProgress, failure: str | None) -> None:
        """Reads the results again, and redraws the table."""
        self.running.pop((run.label, run.seed), None)
        self.summaries = self._summaries()
        self.draw()

    def _summaries(self) -> dict[str, Summary]:
        try:
            comparison = read_comparison(self.grid.path)
        except InputError:  # nothing is written yet
            return {}
        found = summarize(comparison.variants, comparison.test_images, self.grid.baseline)
        return {summary.label: summary for summary in found}

    def draw(self) -> None:
        """Draws the table."""
        self.drawn = time.monotonic()
        self.live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("method", "weights"):
            table.add_column(name)
        metric = self._metric()
        for name in ("seeds done", "now", "accuracy now, %", *(one.name for one in self._results)):
            table.add_column(in_text(name, metric), justify="right")
        for variant in self.grid.variants:
            label = Text(variant.label)  # it may hold brackets, which are no markup
            table.add_row(label, *self._cells(variant.label))
        return table

    def _metric(self) -> Metric:
        """What is measured, as the finished runs say, or else the recipe."""
        recipe: Metric = self.grid.recipe.data.metric
        return next((one.metric for one in self.summaries.values() if one.seeds), recipe)

    @property
    def _results(self) -> tuple[columns.Column, ...]:
        baseline = self.grid.baseline
        own = columns.difference_to(baseline), columns.p_value_of(baseline)
        return (columns.TEST_ACCURACY, *own)

    def _cells(self, label: str) -> list[str]:
        """The cells after the method's label."""
        summary = self.summaries.get(label)
        now = [run for (name, _), run in sorted(self.running.items()) if name == label]
        position = "\n".join(
            f"seed {run.seed}, epoch {min(run.epoch + 1, run.epochs)}/{run.epochs}" for run in now
        )
        accuracy = "\n".join("" if run.accuracy is None else f"{run.accuracy:.2f}" for run in now)
        if summary is None:
            return ["", "", position, accuracy, *("" for _ in self._results)]
        asked = set(self.grid.seeds)
        done = f"{len(asked & set(summary.seeds))}/{len(asked)}"
        if failed := asked & set(summary.failed):
            done += f" ({len(failed)} failed)"
        results = [column.text(summary) for column in self._results]
        return [columns.WEIGHTS.text(summary), done, position, accuracy, *results]


@contextmanager
def live_table(grid: Grid) -> Iterator[Callback]:
    """Shows the progress of a comparison on stderr.

    Args:
        grid: The comparison.

    Yields:
        The callback to run it with.
    """
    console = Console(stderr=True)
    if not (console.is_terminal and shows_bars()):
        yield LogLines()
        return
    with Live(console=console, transient=True, auto_refresh=False) as live:
        yield LiveTable(grid, live)
