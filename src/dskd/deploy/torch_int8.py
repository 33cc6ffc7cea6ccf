"""Quantize a student to 8 bits by torchao, for the formats that start from a torch program."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule

from dskd.deploy.student_graph import StudentGraph, cannot_quantize


def quantized(
    graph: StudentGraph, quantizer: Any, target: str, most: int | None = None
) -> StudentGraph:
    """Quantizes after training: the calibration images choose the ranges of the activations.

    Args:
        graph: The student, with calibration images.
        quantizer: Of torchao's form, for the backend that will run the file.
        target: The name of the format, for the error.
        most: The largest batch; None for any.

    Returns:
        The quantized student.

    Raises:
        InputError: torchao cannot quantize it.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    program = graph.program(target, most)
    try:
        with torch.no_grad():
            prepared = prepare_pt2e(program.module(), quantizer)
            for images in graph.calibration_batches():
                prepared(images)
            module = convert_pt2e(prepared)
    except Exception as error:  # torchao raises many types
        raise cannot_quantize(graph.name, "torchao", error) from error
    _drop_unused(module)
    return replace(graph, module=module)


def _drop_unused(module: GraphModule) -> None:
    """Removes the weights in float32, of which the quantized program has its own copy."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    held = [*module.named_parameters(), *module.named_buffers()]
    for name in [name for name, _ in held if name not in used]:
        parent, _, last = name.rpartition(".")
        delattr(module.get_submodule(parent), last)
