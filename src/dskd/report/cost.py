"""What a model takes to keep and to run: parameters, multiply-adds, and time on this CPU."""

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
    """What a model takes.

    Attributes:
        parameters: Numbers in its parameters.
        multiply_adds: Of the convolutions and matrix products for one image.
        latency: Milliseconds for one image, the median of many.
        latency_batch: Milliseconds for a batch of 64, the median of many.
    """

    parameters: int
    multiply_adds: int
    latency: float
    latency_batch: float


def measure(model: StagedModel, shape: tuple[int, int, int]) -> Cost:
    """What a model takes, its latency measured here and now on one thread.

    Args:
        model: In eval mode, on the CPU.
        shape: Channels, height and width of an image.
    """
    taken = model_cost(model.module, shape)
    with _one_thread():
        latencies = [_latency(model.module, torch.zeros(n, *shape)) for n in (1, BATCH)]
    return Cost(taken.parameters, taken.multiply_adds, *latencies)


@torch.inference_mode()
def _latency(module: nn.Module, images: Tensor) -> float:
    """The median time of a forward pass in milliseconds, after a warm-up.

    Passes are repeated for a second, five times at least and a hundred times at most.
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
    """Threads that wait for each other on a busy machine would tell more of it than of a model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
