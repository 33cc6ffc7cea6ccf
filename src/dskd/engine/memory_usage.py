"""Memory that a training step holds: the same number on any device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dskd.engine.dot import DOT


class SavedTensors:
    """Bytes of tensors. Tensors that share memory count once.

    Attributes:
        complete: Whether no further tensor counts.

    Example:
        >>> saved, weights = SavedTensors(), torch.zeros(10)
        >>> for tensor in (weights, weights.view(2, 5)):
        ...     _ = saved.add(tensor)
        >>> saved.bytes
        40
    """

    def __init__(self) -> None:
        self.complete = False
        self._sizes: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all tensors that were added."""
        return sum(self._sizes.values())

    def bytes_without(self, tensors: Iterable[Tensor]) -> int:
        """Bytes of all tensors that were added but these."""
        left_out = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return sum(size for place, size in self._sizes.items() if place not in left_out)

    def add(self, tensor: Tensor) -> Tensor:
        """Adds a tensor, unless all are counted, and returns it."""
        if not self.complete:
            storage = tensor.untyped_storage()
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def saved_for_backward() -> Iterator[SavedTensors]:
    """Counts what is saved in the block before its first backward pass.

    The further parts of a step that accumulates gradients take the memory of the first again.
    """
    saved = SavedTensors()

    def read(tensor: Tensor) -> Tensor:
        saved.complete = True
        return tensor

    with saved_tensors_hooks(saved.add, read):
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
            for tensor in value if isinstance(value, list) else [value]:
                if isinstance(tensor, Tensor):
                    state.add(tensor)
    gradients = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    if isinstance(optimizer, DOT):
        gradients *= 2
    return weights.bytes + state.bytes + gradients


@dataclass
class StepMemory:
    """What a training step holds.

    Attributes:
        bytes: Of weights and buffers, gradients, the optimizer's state, and what the forward pass
            saves for the backward pass.
    """

    bytes: int


@contextmanager
def measured_step(
    known: int, module: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> Iterator[StepMemory]:
    """Measures the memory of the training step in the block, unless it is known.

    Args:
        known: Bytes of an earlier step; 0 if there was none.
        module: That is trained.
        optimizer: Of its parameters.
        average: The moving average of its weights, which a step holds too; None for none.
    """
    memory = StepMemory(known)
    if known:
        yield memory
        return
    with saved_for_backward() as saved:
        yield memory
    averages = [] if average is None else [*average.parameters(), *average.buffers()]
    memory.bytes = saved.bytes + held_by_training(module, optimizer)
    memory.bytes += sum(tensor.nbytes for tensor in averages)
