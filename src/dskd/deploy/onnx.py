"""Write and run ONNX files."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dskd.deploy.input_contract import CONTRACT, INPUT, OUTPUT
from dskd.deploy.onnx_exits import add_exits, exit_output
from dskd.deploy.student_graph import Runner, StudentGraph, cannot_export, cannot_quantize
from dskd.errors import InputError, first_line


def write(graph: StudentGraph, path: Path) -> None:
    """Writes the student.

    Args:
        graph: The student.
        path: The file.

    Raises:
        InputError: torch cannot export it, or it is too large for one file.
    """
    if graph.calibration is None:
        path.write_bytes(_serialized(graph))
        return
    with tempfile.TemporaryDirectory(prefix="dskd-int8-") as folder:
        plain = Path(folder) / "float.onnx"
        plain.write_bytes(_serialized(graph))
        _quantize(graph, plain, path)


def _quantize(graph: StudentGraph, plain: Path, path: Path) -> None:
    """Quantizes a file by ONNX Runtime: weights by channel, activations by their range."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = graph.calibration_batches()

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            images = next(batches, None)
            return None if images is None else {INPUT: images.numpy()}

    prepared = plain.with_name("prepared.onnx")
    try:
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    except Exception as error:  # the library raises many types
        raise cannot_quantize(graph.name, "ONNX Runtime", error) from error


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
                output_names=_outputs(graph),
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
            if (exits := graph.contract.exits) is not None:
                add_exits(proto, [exits.policy.thresholds[number] for number in exits.running])
            proto.metadata_props.add(key=CONTRACT, value=graph.contract.text())
            serialized: bytes = proto.SerializeToString()
        except Exception as error:  # protobuf has its own types
            reason = first_line(error)
            raise InputError(f"{graph.name} is too large for one ONNX file: {reason}") from error
        return serialized


def _outputs(graph: StudentGraph) -> list[str]:
    """The names of what the module returns."""
    exits = graph.contract.exits
    if exits is None:
        return [OUTPUT]
    return [exit_output(number) for number in range(len(exits.running) + 1)]


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
