"""The optimizer DOT: the gradients of labels and of distillation have a momentum of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.runtime import distributed

TASK = "ce"
"""The loss of the labels. All other losses of a method are those of distillation."""
Gradients = list[Tensor | None]
"""A gradient for each parameter; None if a loss does not depend on it."""


class DOT(torch.optim.Optimizer):
    """SGD with two momentum buffers, one for the labels and one for distillation.

    - ``v_task = (mu - delta) v_task + g_task + decay w``
    - ``v_distillation = (mu + delta) v_distillation + g_distillation``
    - ``w = w - lr (v_task + v_distillation)``

    At the first step each buffer is its gradient. So distillation, whose momentum is larger,
    decides in the long run. With ``delta`` 0 this is SGD on the sum of the losses. A weight with
    one of the two gradients alone has the momentum mu.

    Source: Zhao, Cui, Song, Liang, DOT: A Distillation-Oriented Trainer, ICCV 2023,
    arXiv 2307.08436, in the form of the authors' code. The published delta is 0.075 on CIFAR-100
    and 0.09 on ImageNet, both with a momentum of 0.9.

    Args:
        parameters: Of the method.
        lr: Learning rate.
        momentum: mu, from 0, below 1.
        delta: From 0 to mu, and below 1 - mu.
        weight_decay: Weight decay.

    Attributes:
        distillation_gradients: The second gradient of each parameter that has one; the first, of
            the labels, is its ``grad``.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.9,
        delta: float = 0.075,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay}
        super().__init__(parameters, settings)
        self.distillation_gradients: dict[Tensor, Tensor] = {}

    def take_gradients(self, losses: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Adds both gradients at the weights of now, averaged over all processes.

        DistributedDataParallel averages once after each forward pass, so it takes no part here.

        Args:
            losses: Of a step, by name.
            scale: On all losses of this process (`distributed.local_loss_scale`).

        Raises:
            InputError: There is no loss of the labels, or no other loss.
            ProcessLost: Another process died.
        """
        task, distillation = separated(losses)
        parameters = [p for group in self.param_groups for p in group["params"]]
        of_teacher = torch.autograd.grad(
            scale * distillation, parameters, retain_graph=True, allow_unused=True
        )
        of_labels = torch.autograd.grad(scale * task, parameters, allow_unused=True)
        both = averaged([*of_labels, *of_teacher], parameters * 2)
        for parameter, first, second in zip(
            parameters, both[: len(parameters)], both[len(parameters) :], strict=True
        ):
            parameter.grad = _sum(parameter.grad, first)
            if (total := _sum(self.distillation_gradients.get(parameter), second)) is not None:
                self.distillation_gradients[parameter] = total

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets both gradients."""
        super().zero_grad(set_to_none)
        self.distillation_gradients = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates the weights by both gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._update(parameter, **group)

    def _update(
        self,
        weight: Tensor,
        *,
        lr: float,
        momentum: float,
        delta: float,
        weight_decay: float,
        **_: Any,
    ) -> None:
        task, distillation = weight.grad, self.distillation_gradients.get(weight)
        if task is None or distillation is None:
            delta = 0.0
        if task is not None:
            task = task.add(weight, alpha=weight_decay)
        elif distillation is not None and self.state[weight]:
            # Without a gradient of the labels, the authors' code decays from the second step on.
            distillation = distillation.add(weight, alpha=weight_decay)
        moved = [
            self._accumulate(weight, name, gradient, factor)
            for name, gradient, factor in (
                ("task_momentum", task, momentum - delta),
                ("distillation_momentum", distillation, momentum + delta),
            )
            if gradient is not None
        ]
        if moved:
            weight.add_(moved[0] if len(moved) == 1 else moved[0] + moved[1], alpha=-lr)

    def _accumulate(self, weight: Tensor, name: str, gradient: Tensor, momentum: float) -> Tensor:
        """The momentum buffer of this name with a gradient added."""
        state = self.state[weight]
        if name not in state:
            state[name] = gradient.clone()
            return gradient
        buffer: Tensor = state[name]
        return buffer.mul_(momentum).add_(gradient)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of what there is."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def separated(losses: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of the labels, and the sum of all others.

    Raises:
        InputError: One of the two is missing.

    Example:
        >>> losses = {"ce": torch.tensor(1.0), "kd": torch.tensor(2.0), "at": torch.tensor(3.0)}
        >>> separated(losses)
        (tensor(1.), tensor(5.))
    """
    others = [loss for name, loss in losses.items() if name != TASK]
    if TASK not in losses or not others:
        raise InputError(
            f"train.optimizer=dot needs a loss {TASK} of the labels and one or more of the teacher,"
            f" and this method gives {', '.join(losses)}; take train.optimizer=sgd"
        )
    return losses[TASK], torch.stack(others).sum()


def averaged(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Gradients:
    """The mean of each gradient over all processes; None where no process has one.

    Args:
        gradients: Of this process.
        parameters: What they belong to.
    """
    processes = distributed.world_size()
    if processes == 1:
        return [*gradients]
    given = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]
    exists = torch.tensor([gradient is not None for gradient in gradients])
    flat = torch.cat([exists.to(given[0]), *(gradient.flatten() for gradient in given)])
    total = distributed.all_reduce_sum(flat)
    sizes = [len(given), *(gradient.numel() for gradient in given)]
    counts, *sums = torch.split(total, sizes)
    return [
        (part / processes).view_as(parameter).to(parameter.dtype) if count else None
        for count, part, parameter in zip(counts.tolist(), sums, parameters, strict=True)
    ]
