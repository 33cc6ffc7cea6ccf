"""PPI from files as they are published: many graphs with several labels a node, by micro-F1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from dskd.cli.commands import run_command
from dskd.engine.tasks.graphs.recipe import RECIPES
from dskd.engine.tasks.graphs.sources import load_graphs
from dskd.engine.tasks.graphs.student import load_student, logits_on

SIZES = {"train": (6, 5, 7), "valid": (5,), "test": (6, 4)}
"""Nodes of each graph."""
SMALL = ["student.hidden=4", "student.heads=2", "train.epochs=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the data set: its archive, unpacked into ``raw``."""
    root = tmp_path_factory.mktemp("ppi")
    (root / "raw").mkdir()
    random = np.random.default_rng(0)
    first = 1  # graphs are numbered through all splits
    for split, sizes in SIZES.items():
        count = sum(sizes)
        arrays: Mapping[str, NDArray[np.generic]] = {
            "feats": random.normal(size=(count, 3)),
            "labels": random.integers(2, size=(count, 4)),
            "graph_id": np.repeat(np.arange(first, first + len(sizes)), sizes),
        }
        for name, values in arrays.items():
            np.save(root / "raw" / f"{split}_{name}.npy", values)
        links = [{"source": a, "target": b} for a, b in _rings(sizes)]
        nodes = [{"id": node, "test": split == "test"} for node in range(count)]
        graph = {"directed": False, "multigraph": False, "graph": {}, "nodes": nodes}
        (root / "raw" / f"{split}_graph.json").write_text(json.dumps({**graph, "links": links}))
        first += len(sizes)
    return root


def _rings(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """The edges of one ring for each graph, and a loop at each node, as in PPI."""
    edges, start = [], 0
    for size in sizes:
        for node in range(size):
            edges += [(start + node, start + (node + 1) % size), (start + node, start + node)]
        start += size
    return edges


def test_the_graphs_of_the_files_are_read(root: Path) -> None:
    recipe = RECIPES.load("ppi", [f"data.root={root}"])
    data = load_graphs(recipe.split_data)
    assert [len(graph) for graph in data.train.graphs] == [6, 5, 7]
    assert [len(graph) for graph in data.test.graphs] == [6, 4]
    assert (data.multilabel, data.metric, data.features, len(data.classes)) == (
        True,
        "micro_f1",
        3,
        4,
    )
    second = data.train.graphs[1]
    edges = {(a, b) for a, b in second.edges.t().tolist()}
    assert edges == {(a, (a + s) % 5) for a in range(5) for s in (1, -1)}
    labels = np.load(root / "raw/train_labels.npy")
    assert np.array_equal(second.labels.numpy(), labels[6:11])


@pytest.mark.slow
def test_students_are_trained_evaluated_and_used_by_commands(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = [*SMALL, f"data.root={root}", f"out={run}"]
    assert run_command(["graphs", "distill", "ppi", *given]) == 0
    result = json.loads((run / "result.json").read_text())
    data = load_graphs(load_student(run).recipe.split_data)
    found = (logits_on(run, data) >= 0.5).numpy()
    expected = 100 * f1_score(np.load(root / "raw/test_labels.npy"), found, average="micro")
    assert result["test_micro_f1"] == pytest.approx(expected, abs=1e-3)
    capsys.readouterr()
    assert run_command(["graphs", "evaluate", str(run)]) == 0
    assert f"{expected:.2f}" in capsys.readouterr().out
    out = tmp_path / "labels.csv"
    assert run_command(["graphs", "predict", str(run), "--out", str(out)]) == 0
    rows = out.read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [
        *(f"1:{node}" for node in range(6)),
        *(f"2:{node}" for node in range(4)),
    ]
