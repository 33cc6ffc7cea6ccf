"""Write and run ONNX files."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dskd.deploy.input_contract import CONTRACT, INPUT, OUTPUT
from dskd.deploy.student_graph import Runner, StudentGraph, cannot_export
from dskd.errors import InputError, first_line


def write(graph: StudentGraph, path: Path) -> None:
    """Writes the student.

    Args:
        graph: The student.
        path: The file.

    Raises:
        InputError: torch cannot export it, or it is too large for one file.
    """
    path.write_bytes(_serialized(graph))


def _serialized(graph: StudentGraph) -> bytes:
    """The student as a serialised ONNX graph."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the exporter
        try:
            program = torch.onnx.export(
                graph.module,
                (graph.example(),),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=graph.dynamic_shapes(),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many types
            raise cannot_export(graph.name, "ONNX", error) from error
        assert program is not None, "dynamo=True returns the program"
        try:
            proto = program.model_proto
            for node in proto.graph.node:
                del node.metadata_props[:]  # lines of code, with the folders of this machine
            proto.metadata_props.add(key=CONTRACT, value=graph.contract.text())
            serialized: bytes = proto.SerializeToString()
        except Exception as error:  # protobuf has its own types
            reason = first_line(error)
            raise InputError(f"{graph.name} is too large for one ONNX file: {reason}") from error
        return serialized


def runner(path: Path, graph: StudentGraph, threads: int = 0) -> Runner:
    """Loads a file into ONNX Runtime.

    Args:
        path: The file.
        graph: The student; unused, as the file holds it.
        threads: Of the processor; 0 for as many as the runtime takes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
        return logits

    return run
