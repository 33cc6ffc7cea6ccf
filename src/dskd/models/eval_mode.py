"""Run a module in evaluation mode, or without gradients, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch a module to evaluation mode; afterwards each submodule gets its own mode back.

    Args:
        module: The module. It may contain submodules that are in evaluation mode already.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with eval_mode(net):
        ...     [part.training for part in net]
        [False, False]
        >>> [part.training for part in net]
        [True, False]
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def no_gradients(module: nn.Module) -> Iterator[None]:
    """Run a module without gradients, and without parameters that require any.

    The second part is for torch's counter of operations: it sets hooks on the inputs of submodules,
    and fails where such an input is a parameter.

    Args:
        module: The module. Afterwards each parameter requires a gradient as before.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with no_gradients(net):
        ...     net.weight.requires_grad
        False
        >>> net.weight.requires_grad
        True
    """
    learning = [p for p in module.parameters() if p.requires_grad and p.is_leaf]
    for parameter in learning:
        parameter.requires_grad = False
    try:
        with torch.no_grad():
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad = True
