"""Write and run programs of ExecuTorch, for phones and other small devices."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dskd.deploy.input_contract import CONTRACT
from dskd.deploy.student_graph import Runner, StudentGraph, cannot_export
from dskd.deploy.torch_int8 import quantized

MOST = 64
"""The largest batch of a program with a dynamic batch: ExecuTorch plans its memory in advance."""


def write(graph: StudentGraph, path: Path) -> None:
    """Writes the student, for the XNNPACK backend (processors).

    Args:
        graph: The student.
        path: The file.

    Raises:
        InputError: The student cannot be lowered.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    if graph.calibration is not None:
        graph = quantized(graph, _quantizer(), "ExecuTorch", MOST)
    program = graph.program("ExecuTorch", MOST)
    logging.getLogger("executorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the exporter
        try:
            lowered = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                constant_methods={CONTRACT: graph.contract.text()},
            ).to_executorch()
        except Exception as error:  # the exporter raises many types
            raise cannot_export(graph.name, "ExecuTorch", error) from error
    path.write_bytes(lowered.buffer)


def _quantizer() -> Any:
    """The quantizer of the XNNPACK backend: weights by channel."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    return xnnpack.XNNPACKQuantizer().set_global(config)


def runner(path: Path, graph: StudentGraph, threads: int = 0) -> Runner:
    """Loads a file into ExecuTorch.

    Args:
        path: The file.
        graph: The student, for the size of its batches; the file holds the rest.
        threads: Unused: the backend takes as many as there are cores.
    """
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    most = graph.contract.batch or MOST

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(images), most):
            # ExecuTorch takes the memory as it lies, whatever the strides of the array say.
            part = np.ascontiguousarray(images[start : start + most])
            (logits,) = method.execute([torch.from_numpy(part)])
            parts.append(logits.numpy().copy())  # the memory is that of the method
        return np.concatenate(parts)

    return run
