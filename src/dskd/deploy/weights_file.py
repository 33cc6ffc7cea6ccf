"""Write and run files of weights alone: safetensors with the keys of the plain network."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dskd.deploy.input_contract import CONTRACT
from dskd.deploy.student_graph import Runner, StudentGraph
from dskd.storage.weights import load_weights, read_weights, write_weights


def write(graph: StudentGraph, path: Path) -> None:
    """Writes the weights, with all that is needed to build and to feed the network.

    Args:
        graph: The student.
        path: The file.
    """
    student = graph.contract.student
    more = {CONTRACT: graph.contract.text(), "format": "pt"}
    path.write_bytes(write_weights(student.model.module, student.metadata, more))


def runner(path: Path, graph: StudentGraph, threads: int = 0) -> Runner:
    """Loads the weights into a copy of the network.

    Args:
        path: The file.
        graph: The student.
        threads: Unused: torch has one setting for the whole process.
    """
    model = copy.deepcopy(graph.contract.student.model)
    load_weights(model.module, read_weights(path), str(path))

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(torch.from_numpy(images)).logits.numpy()
        return logits

    return run
