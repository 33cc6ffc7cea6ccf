"""Export a trained student to ONNX."""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dskd.deploy.attention import Unfused
from dskd.deploy.student import DeployedStudent
from dskd.errors import InputError, first_line
from dskd.storage.atomic import replace_file
from dskd.storage.paths import as_path

TOLERANCE = 1e-4
"""Largest allowed difference of the outputs, relative to the largest output."""
_BATCH = 4
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""Escape sequences of a terminal."""


class _Normalized(nn.Module):
    """The student with its normalisation: from images between 0 and 1 to logits."""

    def __init__(self, deployed: DeployedStudent) -> None:
        super().__init__()
        self.module = deployed.model.module
        self.register_buffer("mean", deployed.model.mean)
        self.register_buffer("std", deployed.model.std)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        with Unfused():
            logits: Tensor = self.module((images - self.mean) / self.std)
        return logits


def export_onnx(deployed: DeployedStudent, path: str | Path) -> float:
    """Export the student to ONNX and compare its outputs with those of the student.

    The graph takes ``images``, float32 ``[N, C, H, W]`` from 0 to 1 with any N, normalises them,
    and returns ``logits``, ``[N, K]``.

    Args:
        deployed: The student.
        path: The file to write; its folder must exist.

    Returns:
        The largest difference of the outputs, relative to the largest output.

    Raises:
        InputError: A package or the folder is missing, or the outputs differ by more than
            `TOLERANCE`. Then nothing is written.
    """
    path = as_path(path, "output")
    _import("onnx"), _import("onnxscript")
    runtime = _import("onnxruntime")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it")
    model = _Normalized(deployed).eval()
    example = torch.rand(_BATCH, *deployed.shape, generator=torch.Generator().manual_seed(0))
    graph = _graph(model, example, deployed.name)
    difference = _difference(runtime, graph, deployed, example)
    if not difference <= TOLERANCE:
        raise InputError(
            f"the exported student differs from the student by {difference:.1e} relative "
            f"(at most {TOLERANCE:g} is allowed); nothing was written"
        )
    try:
        replace_file(path, graph)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    return difference


def _cause(error: BaseException) -> str:
    """The first line of the innermost cause, without the colours of a terminal."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    text = _COLOURS.sub("", str(error)).strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(
            f"exporting to ONNX needs {package}; install it with: "
            "pip install onnx onnxruntime onnxscript"
        ) from None


def _graph(model: nn.Module, example: Tensor, name: str) -> bytes:
    """The model as a serialised ONNX graph."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the exporter
        try:
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many types
            raise InputError(f"torch cannot export {name} to ONNX: {_cause(error)}") from error
        assert program is not None, "dynamo=True returns the program"
        try:
            graph: bytes = program.model_proto.SerializeToString()
        except Exception as error:  # protobuf has its own types
            reason = first_line(error)
            raise InputError(f"{name} is too large for one ONNX file: {reason}") from error
        return graph


@torch.no_grad()
def _difference(runtime: Any, graph: bytes, student: DeployedStudent, example: Tensor) -> float:
    """The largest relative difference, over a batch and a single image."""
    session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    differences = []
    for images in (example, example[:1]):
        expected = student.model(images).logits
        try:
            (found,) = session.run(["logits"], {"images": images.numpy()})
        except Exception as error:  # onnxruntime has its own types
            raise InputError(
                f"onnxruntime does not run the exported student: {first_line(error)}"
            ) from error
        scale = expected.abs().max().clamp_min(1e-12)
        differences.append((torch.from_numpy(found) - expected).abs().max() / scale)
    return torch.stack(differences).max().item()  # NaN if one of them is NaN
