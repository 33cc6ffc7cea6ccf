"""The optimizer of a run."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dskd.config.optimizers import timm_optimizer
from dskd.engine.dot import DOT
from dskd.errors import InputError, first_line
from dskd.methods.base import Method

_NOT_RESTORED = ("lr", "fused")
"""What a checkpoint does not restore: the schedule sets the rate, the device decides on fusion."""


def make_optimizer(
    method: Method,
    name: str,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    dot_delta: float = 0.075,
    decay_norms_and_biases: bool = True,
) -> torch.optim.Optimizer:
    """An optimizer of the student and of all that is trained with it.

    On a GPU it is fused: one kernel updates all weights. On a CPU a fused one saved less than 1 %
    of a step, so a CPU has the plain one. An optimizer of timm chooses this itself.

    Args:
        method: Its parameters are trained.
        name: ``sgd``, ``adamw``, ``dot``, or an optimizer of timm.
        lr: Learning rate.
        momentum: Of the optimizers that have one number for it.
        nesterov: Whether sgd has Nesterov momentum.
        weight_decay: Weight decay.
        dot_delta: Of `DOT`.
        decay_norms_and_biases: Whether weight decay also applies to what `without_decay` finds.

    Raises:
        InputError: No parameter of the student requires a gradient, or the optimizer cannot be
            built.
    """
    parameters = [p for p in method.parameters() if p.requires_grad]
    if not any(p.requires_grad for p in method.student.parameters()):
        raise InputError(
            "nothing of the model can learn: requires_grad is False for all its parameters"
        )
    fused = all(p.is_cuda and p.is_floating_point() for p in parameters) or None
    trained: Any = parameters if decay_norms_and_biases else _groups(method, parameters)
    if (timm_name := timm_optimizer(name)) is not None:
        return _from_timm(trained, timm_name, lr, momentum, weight_decay)
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        optimizer = torch.optim.AdamW(trained, lr, weight_decay=weight_decay, fused=fused)
    elif name == "dot":
        optimizer = DOT(trained, lr, momentum=momentum, delta=dot_delta, weight_decay=weight_decay)
    else:
        optimizer = torch.optim.SGD(
            trained,
            lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            fused=fused,
        )
    return optimizer


def _from_timm(
    trained: Any, name: str, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    timm_optim: Any = importlib.import_module("timm.optim")
    try:
        optimizer: torch.optim.Optimizer = timm_optim.create_optimizer_v2(
            trained, name, lr=lr, weight_decay=weight_decay, momentum=momentum
        )
    except Exception as error:  # a missing package or GPU, or values that it refuses
        raise InputError(
            f"train.optimizer=timm/{name} cannot be built here: {first_line(error)}"
        ) from error
    return optimizer


def without_decay(method: nn.Module) -> set[nn.Parameter]:
    """The parameters that usually have no weight decay.

    These are the ones of at most one dimension: biases, and scale and shift of normalisation
    layers. timm's models name further ones in ``no_weight_decay()``, such as position embeddings.

    Example:
        >>> layers = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        >>> len(without_decay(layers))
        3
    """
    found = {parameter for parameter in method.parameters() if parameter.ndim <= 1}
    for module in method.modules():
        names = getattr(module, "no_weight_decay", None)
        named = set(names()) if callable(names) else set()
        found |= {p for name, p in module.named_parameters() if name in named}
    return found


def _groups(method: nn.Module, parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay, each in the order of the parameters."""
    exempt = without_decay(method)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p not in exempt]},
        {"params": [p for p in parameters if p in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def clip(optimizer: torch.optim.Optimizer, max_norm: float, norm: Tensor) -> None:
    """Scales all gradients down so that their norm is at most ``max_norm``.

    Both gradients of `DOT` get the same factor.

    Args:
        optimizer: Of the parameters.
        max_norm: Above 0.
        norm: Of all gradients together (`gradient_norm`).
    """
    torch.nn.utils.clip_grads_with_norm_(_trained(optimizer), max_norm, norm)
    if isinstance(optimizer, DOT) and (further := [*optimizer.distillation_gradients.values()]):
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(further, factor)


@torch.no_grad()
def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The Euclidean norm of all gradients together.

    With `DOT`, each gradient is the sum of that of the labels and that of distillation.
    """
    gradients: dict[Tensor, Tensor] = {p: p.grad for p in _trained(optimizer) if p.grad is not None}
    if isinstance(optimizer, DOT):
        for parameter, further in optimizer.distillation_gradients.items():
            own = gradients.get(parameter)
            gradients[parameter] = further if own is None else own + further
    return torch.nn.utils.get_total_norm([*gradients.values()])


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


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
