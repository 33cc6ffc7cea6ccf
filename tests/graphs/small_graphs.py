"""A small graph in a file, and small runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dskd.engine.result import Result
from dskd.engine.run import run_job
from dskd.engine.tasks.graphs.job import GraphJob
from dskd.engine.tasks.graphs.recipe import RECIPES
from dskd.engine.tasks.graphs.settings import GraphRecipe

SMALL = ["student.name=gcn", "student.hidden=8", "train.epochs=3"]
OF_TEACHER = ["teacher.name=gat", "teacher.layers=2", "teacher.hidden=8"]


def arrays(**changes: Any) -> dict[str, Any]:
    """A ring of 30 nodes in 3 classes, as an .npz file holds it."""
    random = np.random.default_rng(0)
    labels = np.arange(30) % 3
    features = random.normal(size=(30, 5)).astype(np.float32) + labels[:, None]
    ring = np.stack([np.arange(30), (np.arange(30) + 3) % 30], 1)
    values: dict[str, Any] = {
        "features": features,
        "labels": labels,
        "edges": ring,
        "train": np.arange(12),
        "val": np.arange(12, 18),
        "test": np.arange(18, 30),
    }
    merged = values | changes
    return {name: value for name, value in merged.items() if value is not None}


def write(path: Path, **changes: Any) -> Path:
    np.savez(path, **arrays(**changes))
    return path


def plan(graph: Path, method: str, out: Path, *changes: str) -> GraphRecipe:
    more = OF_TEACHER if method == "dskd" else []
    data = ["data.name=npz", f"data.root={graph}", f"method.name={method}", f"out={out}"]
    return RECIPES.load(None, [*SMALL, *more, *data, *changes])


def trained(graph: Path, method: str, out: Path, *changes: str, resume: bool = False) -> Result:
    return run_job(GraphJob(plan(graph, method, out, *changes)), resume=resume)
