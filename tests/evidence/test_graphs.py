"""The study on graphs, on a small graph and with few epochs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evidence.graphs import METHODS, NAMES, main

from tests.graphs.small_graphs import write

pytest.importorskip("torch_geometric")


@pytest.mark.slow
def test_the_study_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evidence.graphs.GRAPHS", ("ring",))
    write(tmp_path / "ring.npz")
    changes = ["train.epochs=1", "student.hidden=4", "teacher.hidden=4"]
    places = [str(tmp_path), str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    for seeds in ("1", "2"):  # the second goes on
        main([*places, *changes, "--seeds", seeds])
    facts = json.loads((tmp_path / "results/graphs.json").read_text())
    ring = facts["graphs"]["ring"]
    assert list(ring["methods"]) == list(METHODS)
    assert all(len(one["seeds"]) == 2 for one in ring["methods"].values())
    assert ring["methods"]["alone"]["gap"] is None
    page = (tmp_path / "results/graphs.md").read_text()
    assert all(f"| {name} |" in page for name in NAMES.values())
