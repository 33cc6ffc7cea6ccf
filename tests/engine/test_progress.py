"""The progress bar of a run, in a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from dskd.config import recipe
from dskd.engine import progress, run


def test_a_run_shows_its_progress_through_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()

    def terminal(**_: object) -> Console:
        return Console(file=shown, force_terminal=True, width=200)

    monkeypatch.setattr(progress, "Console", terminal)
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    changes = ["data.fraction=0.1", "train.epochs=2", "train.batch_size=64", "method={name: ce}"]
    run.distill(recipe.load("digits", [*changes, "teacher=null", f"out={tmp_path / 'run'}"]))
    assert "epoch 2/2" in shown.getvalue()
    assert "images/s" in shown.getvalue()
