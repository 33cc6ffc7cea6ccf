"""The optimizer of a run: how it is made, given its rate, and taken up again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.settings import OptimizerName

_OWN = ("lr", "fused", "capturable")


def make_optimizer(
    method: Method,
    name: OptimizerName,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The optimizer of the student and of what is trained beside it.

    On a GPU it is a fused one with its rate on the device, so that no step waits for the host.
    There is none on a CPU: it was measured to save less than 1 % of a step.

    Raises:
        InputError: The student has no parameter that requires a gradient.
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
    else:
        optimizer = torch.optim.SGD(
            parameters,
            lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            fused=fused,
        )
    if fused:
        on_device(optimizer)
    return optimizer


def on_device(optimizer: torch.optim.Optimizer) -> None:
    """Keeps the learning rate where the weights are: a recorded step reads it there."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate, wherever it is kept."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes over a saved state, but not how and where it was computed: that is the optimizer's own.

    A run may go on on another device.
    """
    own = [{k: group[k] for k in _OWN if k in group} for group in optimizer.param_groups]
    groups = [saved | kept for saved, kept in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict(state | {"param_groups": groups})
