"""The optimizer of a run."""

from __future__ import annotations

from typing import Any

import torch

from dskd.engine.dot import DOT
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.settings import OptimizerName

_NOT_RESTORED = ("lr", "fused")
"""What a checkpoint does not restore: the schedule sets the rate, the device decides on fusion."""


def make_optimizer(
    method: Method,
    name: OptimizerName,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    dot_delta: float = 0.075,
) -> torch.optim.Optimizer:
    """An optimizer of the student and of all that is trained with it.

    On a GPU it is fused: one kernel updates all weights. On a CPU a fused one saved less than 1 %
    of a step, so a CPU has the plain one.

    Raises:
        InputError: No parameter of the student requires a gradient.
    """
    parameters = [p for p in method.parameters() if p.requires_grad]
    if not any(p.requires_grad for p in method.student.parameters()):
        raise InputError(
            "nothing of the model can learn: requires_grad is False for all its parameters"
        )
    fused = all(p.is_cuda and p.is_floating_point() for p in parameters) or None
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=fused)
    elif name == "dot":
        optimizer = DOT(
            parameters, lr, momentum=momentum, delta=dot_delta, weight_decay=weight_decay
        )
    else:
        optimizer = torch.optim.SGD(
            parameters,
            lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            fused=fused,
        )
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores a saved state, which another kind of device may have saved."""
    own = [
        {key: group[key] for key in _NOT_RESTORED if key in group}
        for group in optimizer.param_groups
    ]
    groups = [saved | kept for saved, kept in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict(state | {"param_groups": groups})
