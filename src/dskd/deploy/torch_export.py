"""Write and run programs of `torch.export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dskd.deploy.input_contract import CONTRACT
from dskd.deploy.student_graph import Runner, StudentGraph

_TRACES = ("stack_trace", "from_node")
"""What a program says about the code that it came from, with the folders of this machine."""


def write(graph: StudentGraph, path: Path) -> None:
    """Writes the student.

    Args:
        graph: The student.
        path: The file.

    Raises:
        InputError: torch cannot export it.
    """
    program = graph.program("torch.export")
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    torch.export.save(program, path, extra_files={f"{CONTRACT}.json": graph.contract.text()})


def runner(path: Path, graph: StudentGraph, threads: int = 0) -> Runner:
    """Loads a file into PyTorch.

    Args:
        path: The file.
        graph: The student; unused, as the file holds it.
        threads: Unused: torch has one setting for the whole process.
    """
    module = torch.export.load(path).module()

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return logits

    return run
