"""The progress of a comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from dskd.compare import progress
from dskd.compare.jobs import RunInJob
from dskd.compare.reader import read_result
from tests.compare.small_comparison import NAMES, small


@pytest.mark.slow
@pytest.mark.parametrize("accuracy_before", [None, 1.0])
def test_a_run_that_lacked_its_result_alone_logs_its_accuracy(
    finished: Path, accuracy_before: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunInJob("kd", 0, 2, finished / "kd/seed0")
    run.accuracy = accuracy_before
    accuracy = read_result(finished / "kd/seed0")["test_accuracy"]
    with caplog.at_level("INFO"):
        progress.LogLines().on_end(run, None)
        progress.LogLines().on_end(run, "the loss is not finite")
    ended = [f"{accuracy:.2f} %", "failed: the loss is not finite"]
    assert caplog.messages == [f"kd, seed 0: {outcome}" for outcome in ended]


@pytest.mark.slow
def test_the_live_table_shows_every_method(finished: Path) -> None:
    console = Console(width=160, record=True)
    with Live(console=console, auto_refresh=False) as shown:
        table = progress.LiveTable(small(finished), shown)
        table.draw()
    text = console.export_text()
    assert all(name in text for name in NAMES.split(","))
    assert "2/2" in text


@pytest.mark.slow
def test_brackets_of_a_label_are_shown(finished: Path) -> None:
    plan, label = small(finished), "alignahead:peers=[gat]"
    variants = tuple(replace(one, label=label) for one in plan.variants)
    console = Console(width=160, record=True)
    with Live(console=console, auto_refresh=False) as shown:
        progress.LiveTable(replace(plan, variants=variants), shown).draw()
    assert label in console.export_text()
