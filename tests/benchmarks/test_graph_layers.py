"""The timing of products over the edges of a graph."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dskd.engine.tasks.graphs.edges import Edges
from tests.graphs.small_graphs import write

pytest.importorskip("torch_geometric")

from graph_layers import FEATURES, cases, main


def test_both_ways_compute_the_same() -> None:
    torch.manual_seed(0)
    edges = Edges(torch.tensor([[0, 1, 2, 3, 1], [1, 2, 0, 1, 0]]), nodes=4)
    features = torch.randn(4, FEATURES)
    for works in cases(edges).values():
        by_edges, as_product = (work(features) for work in works.values())
        torch.testing.assert_close(by_edges, as_product)


def test_it_prints_a_row_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["graph_layers.py", str(write(tmp_path / "a.npz"))])
    main()
    assert capsys.readouterr().out.count("\n| ") == 3
