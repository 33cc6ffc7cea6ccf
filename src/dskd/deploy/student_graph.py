"""The student as a module that an exporter takes: normalisation included, one tensor out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dskd.deploy.attention import Unfused
from dskd.deploy.early_exits import EarlyExits
from dskd.deploy.input_contract import InputContract
from dskd.errors import InputError
from dskd.models.logits import find_logits
from dskd.models.plain_copy import plain_copy

Runner = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Runs an exported student: images ``[N, C, H, W]`` from 0 to 1 to logits ``[N, K]``."""

_EXAMPLES = 4
_CALIBRATION_BATCH = 32
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""Escape sequences of a terminal."""


class Normalized(nn.Module):
    """The student with its normalisation: from images between 0 and 1 to logits.

    Args:
        contract: Of the student.
    """

    def __init__(self, contract: InputContract) -> None:
        super().__init__()
        model = contract.student.model
        self.module = model.module
        self.register_buffer("mean", model.mean)
        self.register_buffer("std", model.std)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, K]`` of images ``[N, C, H, W]``."""
        with Unfused():
            output = self.module((images - self.mean) / self.std)
        logits: Tensor = find_logits(output, images.shape[0], self.module)
        return logits


class AllExits(nn.Module):
    """The logits of all early exits that are not switched off, and then the student's own.

    Args:
        exits: The exits.
    """

    def __init__(self, exits: EarlyExits) -> None:
        super().__init__()
        self.student = exits.student

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[N, K]`` of images ``[N, C, H, W]`` from 0 to 1."""
        with Unfused():
            return tuple(self.student.all_logits(images))


@dataclass(frozen=True)
class StudentGraph:
    """A student that is to be exported.

    Attributes:
        module: From images to logits, in evaluation mode, on the CPU. With early exits, it gives
            the logits of each, see `AllExits`.
        contract: What the file expects.
        calibration: Images from 0 to 1 by which the ranges of 8-bit numbers are chosen; None for an
            export in float32.
    """

    module: nn.Module
    contract: InputContract
    calibration: Tensor | None = None

    @property
    def name(self) -> str:
        """The name of the student's model."""
        return self.contract.student.name

    def example(self, most: int | None = None) -> Tensor:
        """A batch of random images.

        Args:
            most: The largest batch that the file will take; None if there is none.
        """
        size = self.contract.batch or most or _EXAMPLES
        draw = torch.Generator().manual_seed(0)
        return torch.rand(size, *self.contract.student.shape, generator=draw)

    def calibration_batches(self) -> Iterator[Tensor]:
        """The calibration images in batches that the exported module takes."""
        assert self.calibration is not None, "the export is in float32"
        size = self.contract.batch or _CALIBRATION_BATCH
        for images in torch.split(self.calibration, size):
            missing = size - len(images) if self.contract.batch is not None else 0
            yield torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])

    def dynamic_shapes(self, most: int | None = None) -> dict[str, dict[int, Dim]] | None:
        """The dimension of the batch, for torch's exporters; None if it has one size."""
        if self.contract.batch is not None:
            return None
        return {"images": {0: Dim("batch", min=1, max=most)}}

    def program(self, target: str, most: int | None = None) -> ExportedProgram:
        """The student as a program of `torch.export`.

        Args:
            target: The name of the format, for the error.
            most: The largest batch; None for any.

        Raises:
            InputError: torch cannot export the module.
        """
        try:
            with torch.no_grad():
                return torch.export.export(
                    self.module, (self.example(most),), dynamic_shapes=self.dynamic_shapes(most)
                )
        except Exception as error:  # the exporter raises many types
            raise cannot_export(self.name, target, error) from error


def student_graph(contract: InputContract, calibration: Tensor | None = None) -> StudentGraph:
    """Prepares a copy of a student for an exporter; the caller's own may be trained further.

    Args:
        contract: What the file will expect.
        calibration: See `StudentGraph`.
    """
    module = Normalized(contract) if contract.exits is None else AllExits(contract.exits)
    twin = plain_copy(module).eval().requires_grad_(False)
    return StudentGraph(twin, contract, calibration)


def cannot_export(name: str, target: str, error: BaseException) -> InputError:
    """The error about an exporter that failed."""
    return InputError(f"torch cannot export {name} to {target}: {_cause(error)}")


def cannot_quantize(name: str, library: str, error: BaseException) -> InputError:
    """The error about a library that cannot quantize a student."""
    return InputError(f"{library} cannot quantize {name} to int8: {_cause(error)}")


def _cause(error: BaseException) -> str:
    """The first line of the innermost cause, without the colours of a terminal."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    text = _COLOURS.sub("", str(error)).strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def in_batches(runner: Runner, batch: int | None) -> Runner:
    """A runner for any number of images, from one for batches of a fixed size.

    Args:
        runner: Runs batches of ``batch`` images.
        batch: None if the runner already takes any number.
    """
    if batch is None:
        return runner

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        padding = -len(images) % batch
        padded = np.concatenate([images, np.repeat(images[-1:], padding, axis=0)])
        parts = [runner(padded[i : i + batch]) for i in range(0, len(padded), batch)]
        return np.concatenate(parts)[: len(images)]

    return run
