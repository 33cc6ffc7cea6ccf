"""The notebooks run from their first cell to their last, shortened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SHORT = """
import dskd
epochs, teacher_epochs, seeds = 1, 2, 2
load_dataset = dskd.load_dataset
dskd.load_dataset = lambda name, size: load_dataset(name, fraction=0.3)
"""
"""In place of the cell that is tagged `parameters`: few epochs, and few and small images."""


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    return found


@pytest.mark.slow(seconds=11)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    read = nbformat.read(notebook, as_version=4)
    (parameters,) = (c for c in read.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source = SHORT
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(read, timeout=300, kernel_name="python3", resources=place).execute()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_in_order_and_shows_its_figures(notebook: Path) -> None:
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert not any(output.get("name") == "stderr" for output in outputs)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(notebook: Path) -> None:
    text = "".join("".join(c["source"]) for c in cells(notebook) if c["cell_type"] == "markdown")
    for part in text.split("](")[1:]:
        target = part.partition(")")[0]
        if not target.startswith("http"):
            assert (notebook.parent / target).exists(), target
