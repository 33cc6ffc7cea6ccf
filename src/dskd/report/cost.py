"""The inference cost of a model: parameters, multiply-adds, and latency on this CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dskd.deploy.latency import measure_latency, one_thread
from dskd.models.cost import model_cost
from dskd.models.staged_model import StagedModel

BATCH = 64


@dataclass(frozen=True)
class Cost:
    """The inference cost of a model.

    Attributes:
        parameters: Number of parameters.
        multiply_adds: Multiply-adds of the convolutions and matrix products for one image.
        latency: Median milliseconds for one image.
        latency_batch: Median milliseconds for a batch of 64; None if it was not measured.
    """

    parameters: int
    multiply_adds: int
    latency: float
    latency_batch: float | None


def measure(model: StagedModel, shape: tuple[int, int, int], *, batch: bool = True) -> Cost:
    """Measures the inference cost of a model. Latency is measured on one thread.

    Args:
        model: In eval mode, on the CPU.
        shape: ``(C, H, W)`` of an image.
        batch: Whether the latency of a batch is measured, too.
    """
    size = model_cost(model.module, shape)
    with one_thread(), torch.inference_mode():
        one = _median(model.module, torch.zeros(1, *shape))
        many = _median(model.module, torch.zeros(BATCH, *shape)) if batch else None
    return Cost(size.parameters, size.multiply_adds, one, many)


def _median(module: nn.Module, images: Tensor) -> float:
    """The median time of a forward pass in milliseconds."""
    return measure_latency({"": lambda: module(images)})[""].median
