"""Write and run files of OpenVINO: the operations in ``.xml``, the weights in ``.bin``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.export import ExportedProgram

from dskd.deploy import onnx
from dskd.deploy.input_contract import CONTRACT, INPUT, OUTPUT
from dskd.deploy.student_graph import Runner, StudentGraph, cannot_export


def write(graph: StudentGraph, path: Path) -> None:
    """Writes the student.

    Args:
        graph: The student.
        path: The ``.xml`` file; the weights are written next to it.

    Raises:
        InputError: The student cannot be converted.
    """
    import openvino

    with tempfile.TemporaryDirectory(prefix="dskd-int8-") as folder:
        source: Path | ExportedProgram = Path(folder) / "int8.onnx"
        if graph.calibration is None:
            source = graph.program("OpenVINO")
        else:  # OpenVINO itself quantizes in a package of its own only
            onnx.write(graph, Path(folder) / "int8.onnx")
        try:
            model = openvino.convert_model(source)
        except Exception as error:  # OpenVINO has its own types
            raise cannot_export(graph.name, "OpenVINO", error) from error
        model.inputs[0].get_tensor().set_names({INPUT})
        model.outputs[0].get_tensor().set_names({OUTPUT})
        model.set_rt_info(graph.contract.text(), [CONTRACT])
        openvino.save_model(model, path, compress_to_fp16=False)


def runner(path: Path, graph: StudentGraph, threads: int = 0) -> Runner:
    """Loads a file into OpenVINO, for the processor and in float32.

    Args:
        path: The ``.xml`` file.
        graph: The student; unused, as the file holds it.
        threads: Of the processor; 0 for as many as the runtime takes.
    """
    import openvino

    # On some processors OpenVINO would compute in bfloat16.
    settings: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.compile_model(path, "CPU", settings)

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = compiled(images)[0]
        return logits.copy()  # the memory belongs to the next call

    return run
