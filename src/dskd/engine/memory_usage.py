"""The memory that a training step holds: the same number on any device, in any process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class SavedTensors:
    """Bytes of tensors, each piece of memory counted once.

    Example:
        >>> footprint, weights = Footprint(), torch.zeros(10)
        >>> for tensor in (weights, weights.view(2, 5)):
        ...     _ = footprint.add(tensor)
        >>> footprint.bytes
        40
    """

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """All that was added."""
        return sum(self._sizes.values())

    def add(self, tensor: Tensor) -> Tensor:
        """Counts a tensor in, and gives it back."""
        storage = tensor.untyped_storage()
        self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def saved_for_backward() -> Iterator[SavedTensors]:
    """Counts what forward passes within the block keep for their gradients."""
    footprint = SavedTensors()
    with saved_tensors_hooks(footprint.add, lambda tensor: tensor):
        yield footprint


def held_by_training(module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights, buffers, gradients and the optimizer's state.

    A gradient is as large as its weight, also where there is none yet.
    """
    footprint = SavedTensors()
    for tensor in (*module.parameters(), *module.buffers()):
        footprint.add(tensor)
    state = SavedTensors()
    for values in optimizer.state.values():
        for value in values.values():
            if isinstance(value, Tensor):
                state.add(value)
    gradients = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    return footprint.bytes + state.bytes + gradients
