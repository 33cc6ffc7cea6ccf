"""The inference cost of a model: parameters, multiply-adds, and latency on this CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dskd.models.cost import model_cost
from dskd.models.staged_model import StagedModel

BATCH = 64
SECONDS = 1.0
_WARM_UP = 3
_FEWEST, _MOST = 5, 100


@dataclass(frozen=True)
class Cost:
    """The inference cost of a model.

    Attributes:
        parameters: Number of parameters.
        multiply_adds: Multiply-adds of the convolutions and matrix products for one image.
        latency: Median milliseconds for one image.
        latency_batch: Median milliseconds for a batch of 64.
    """

    parameters: int
    multiply_adds: int
    latency: float
    latency_batch: float


def measure(model: StagedModel, shape: tuple[int, int, int]) -> Cost:
    """Measures the inference cost of a model. Latency is measured on one thread.

    Args:
        model: In eval mode, on the CPU.
        shape: ``(C, H, W)`` of an image.
    """
    size = model_cost(model.module, shape)
    with _one_thread():
        latencies = [_latency(model.module, torch.zeros(n, *shape)) for n in (1, BATCH)]
    return Cost(size.parameters, size.multiply_adds, *latencies)


@torch.inference_mode()
def _latency(module: nn.Module, images: Tensor) -> float:
    """The median time of a forward pass in milliseconds, after a warm-up.

    Passes are repeated for a second, at least 5 times and at most 100 times.
    """
    for _ in range(_WARM_UP):
        module(images)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < _FEWEST or (len(times) < _MOST and time.perf_counter() - begun < SECONDS):
        start = time.perf_counter()
        module(images)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits torch to one thread. Several threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
