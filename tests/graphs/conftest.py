"""A graph, and a finished run of each method, which the tests of this folder share."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.graphs.small_graphs import trained, write

if find_spec("torch_geometric") is None:  # an extra
    collect_ignore_glob = ["test_*.py"]
METHODS = ("alone", "alignment", "alignahead", "alignahead++", "dskd")


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("graph") / "ring.npz")


@pytest.fixture(scope="session")
def finished(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graph-runs")
    for method in METHODS:
        trained(graph, method, out / method)
    return out
