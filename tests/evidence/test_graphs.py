"""The study on graphs, on a small graph and with few epochs."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from evidence.graphs import METHODS, NAMES, main, page

from tests.graphs.small_graphs import write

pytestmark = pytest.mark.skipif(
    find_spec("torch_geometric") is None, reason="torch_geometric is not installed"
)


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
    text = (tmp_path / "results/graphs.md").read_text()
    assert all(f"| {name} |" in text for name in NAMES.values())


def test_the_page_opens_with_the_graphs_on_which_a_method_differs() -> None:
    row = {"accuracy": 80.0, "accuracy_half": 1.0, "sampling_error": 1.0, "seconds": 1.0}
    even = row | {"gap": 0.1, "gap_half": 0.5, "p_holm": 0.8}
    alone = row | {"gap": None, "gap_half": None, "p_holm": None}
    methods = dict.fromkeys(METHODS, even) | {"alone": alone}
    cora = methods | {"dskd": row | {"gap": 2.0, "gap_half": 0.5, "p_holm": 0.01}}
    graphs = {
        name: {"test_nodes": 100, "teacher": 81.0, "methods": found}
        for name, found in {"cora": cora, "citeseer": methods}.items()
    }
    environment = {"packages": {}, "processor": "", "device": "cpu", "threads": 1, "python": "3"}
    origin = {"study": "graphs", "command": "make", "changes": [], "commit": "0", "date": ""}
    text = page({**origin, "environment": environment, "seeds": 10, "graphs": graphs})
    assert "DSKD from a larger teacher is better on cora than one student alone. No diff" in text
    assert "is shown for one-to-one alignment, Alignahead, Alignahead++ (our form), " in text
