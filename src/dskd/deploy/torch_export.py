"""Write and run programs of `torch.export`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dskd.deploy.input_contract import CONTRACT
from dskd.deploy.student_graph import Runner, StudentGraph
from dskd.deploy.torch_int8 import quantized

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
    if graph.calibration is not None:
        graph = quantized(graph, _quantizer(), "torch.export")
    program = graph.program("torch.export")
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    torch.export.save(program, path, extra_files={f"{CONTRACT}.json": graph.contract.text()})


def _quantizer() -> Any:
    """The quantizer for processors of the x86 family, which `torch.compile` makes fast."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())


def runner(path: Path, graph: StudentGraph, threads: int = 0) -> Runner:
    """Loads a file into PyTorch.

    Args:
        path: The file.
        graph: The student, as the file may need more operations than torch has.
        threads: Unused: torch has one setting for the whole process.
    """
    if graph.contract.int8:
        importlib.import_module("torchao.quantization.pt2e")  # registers the operations
    module = torch.export.load(path).module()

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            # Channels that come last in memory would not fit a map that the graph views as a row.
            rows = torch.from_numpy(np.ascontiguousarray(images))
            logits: NDArray[np.float32] = module(rows).numpy()
        return logits

    return run
