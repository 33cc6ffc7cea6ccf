"""A finished comparison, which the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dskd.compare.runner import run_grid
from tests.compare.small_comparison import Silent, small


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "finished"
    run_grid(small(out), Silent())
    return out
