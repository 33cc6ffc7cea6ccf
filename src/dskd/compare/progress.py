"""What a person sees while a comparison runs: one table, drawn again as it fills."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dskd.compare.grid import Grid
from dskd.compare.lockstep import Student, Watcher
from dskd.compare.reader import read_comparison
from dskd.compare.summary import Summary, summarize
from dskd.compare.table import interval_text, p_text, weights_text
from dskd.errors import InputError

log = logging.getLogger("dskd")
REDRAW_SECONDS = 0.5


class _Lines:
    """A line for each run that ends, where no terminal can show a table."""

    def stepped(self, student: Student) -> None:
        """Nothing is said of a step."""

    def ended(self, student: Student, failure: str | None) -> None:
        """Says what became of the run."""
        row = student.row or {}
        outcome = (
            f"{row.get('test_accuracy', 0.0):.2f} %" if failure is None else f"failed: {failure}"
        )
        log.info("%s, seed %d: %s", student.label, student.seed, outcome)


class _LiveTable:
    """The comparison so far, and how far each running student is."""

    def __init__(self, grid: Grid, live: Live) -> None:
        self.grid, self.live = grid, live
        self.running: dict[str, Student] = {}
        self.summaries = self._summaries()
        self.drawn = 0.0

    def stepped(self, student: Student) -> None:
        """Notes the student, and draws now and then."""
        self.running[student.label] = student
        if time.monotonic() - self.drawn > REDRAW_SECONDS:
            self._draw()

    def ended(self, student: Student, failure: str | None) -> None:
        """Reads the results again."""
        self.running.pop(student.label, None)
        self.summaries = self._summaries()
        self._draw()

    def _summaries(self) -> dict[str, Summary]:
        try:
            comparison = read_comparison(self.grid.path)
        except InputError:  # nothing is written yet
            return {}
        return {s.label: s for s in summarize(comparison.entries, comparison.test_images)}

    def _draw(self) -> None:
        self.drawn = time.monotonic()
        self.live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        drawn = Table(box=box.SIMPLE_HEAD)
        names = ("method", "weights", "seeds done", "now", "accuracy, %", "last epoch, %")
        for name in (*names, "against kd", "p (Holm)"):
            drawn.add_column(name, justify="left" if name in names[:2] else "right")
        for variant in self.grid.method_variants:
            drawn.add_row(variant.label, *self._cells(variant.label))
        return drawn

    def _cells(self, label: str) -> list[str]:
        summary, student = self.summaries.get(label), self.running.get(label)
        now, accuracy = "", ""
        if student is not None:
            trainer = student.training_run.trainer
            now = f"seed {student.seed}, epoch {trainer.epoch + 1}/{trainer.epochs}"
            accuracy = f"{student.row['test_accuracy']:.2f}" if student.row else ""
        if summary is None:
            return ["", "", now, accuracy, "", "", ""]
        difference = summary.difference
        done = f"{len(summary.seeds)}/{len(self.grid.seeds)}"
        return [
            weights_text(summary.weights),
            done + (f" ({len(summary.failed)} failed)" if summary.failed else ""),
            now,
            accuracy,
            interval_text(summary.last),
            interval_text(difference.interval, sign="+") if difference else "-",
            p_text(difference),
        ]


@contextmanager
def live_table(grid: Grid) -> Iterator[Watcher]:
    """The table of a running comparison on stderr; lines where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, transient=True, auto_refresh=False) as live:
        yield _LiveTable(grid, live)
