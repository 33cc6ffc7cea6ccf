"""The progress of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from dskd.compare import progress
from tests.compare.small_comparison import NAMES, small


@pytest.mark.slow
def test_the_live_table_shows_every_method(finished: Path) -> None:
    console = Console(width=160, record=True)
    with Live(console=console, auto_refresh=False) as shown:
        table = progress.LiveTable(small(finished), shown)
        table.draw()
    text = console.export_text()
    assert all(name in text for name in NAMES.split(","))
    assert "2/2" in text
