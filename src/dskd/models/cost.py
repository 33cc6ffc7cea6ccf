"""The cost of a model: its parameters and its multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dskd.models.eval_mode import eval_mode, no_gradients


class ModelCost(NamedTuple):
    """The cost of a model.

    Attributes:
        parameters: Number of parameters; shared ones count once.
        multiply_adds: Multiply-adds of the convolutions and matrix products for one image.
    """

    parameters: int
    multiply_adds: int


@contextmanager
def counted_operations() -> Iterator[FlopCounterMode]:
    """Counts the operations of the block. torch's fused attention is off in it.

    Within one fused operation, the counter sees none of the matrix products.

    Yields:
        The counter. A multiplication and an addition are two operations.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def model_cost(module: nn.Module, shape: tuple[int, int, int]) -> ModelCost:
    """Count the parameters and the multiply-adds of a module for one image.

    The module runs once on zeros, in evaluation mode, on its own device (which may be ``meta``)
    and in its own type. It is not changed.

    Args:
        module: Any module that takes ``[1, C, H, W]``.
        shape: ``(C, H, W)`` of the image.

    Example:
        >>> model_cost(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 10, 10))
        ModelCost(parameters=216, multiply_adds=21600)
    """
    like = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
    with eval_mode(module), no_gradients(module), counted_operations() as counter:
        module(image)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    # The counter counts a multiplication and an addition as two operations.
    return ModelCost(parameters, counter.get_total_flops() // 2)
