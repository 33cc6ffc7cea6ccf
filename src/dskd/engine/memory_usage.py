"""Memory that a training step holds: the same number on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dskd.engine.dot import DOT


class SavedTensors:
    """Bytes of tensors. Tensors that share memory count once.

    Example:
        >>> saved, weights = SavedTensors(), torch.zeros(10)
        >>> for tensor in (weights, weights.view(2, 5)):
        ...     _ = saved.add(tensor)
        >>> saved.bytes
        40
    """

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all tensors that were added."""
        return sum(self._sizes.values())

    def add(self, tensor: Tensor) -> Tensor:
        """Adds a tensor and returns it."""
        storage = tensor.untyped_storage()
        self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def saved_for_backward() -> Iterator[SavedTensors]:
    """Counts what forward passes within the block save for the backward pass."""
    saved = SavedTensors()
    with saved_tensors_hooks(saved.add, lambda tensor: tensor):
        yield saved


def held_by_training(module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights, buffers, gradients and optimizer state.

    Every trained weight counts a gradient of its size, also before the first step; with `DOT` two.
    """
    weights = SavedTensors()
    for tensor in (*module.parameters(), *module.buffers()):
        weights.add(tensor)
    state = SavedTensors()
    for values in optimizer.state.values():
        for value in values.values():
            if isinstance(value, Tensor):
                state.add(value)
    gradients = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    if isinstance(optimizer, DOT):
        gradients *= 2
    return weights.bytes + state.bytes + gradients
