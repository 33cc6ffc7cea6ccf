"""The moving average of the student's weights (EMA)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dskd.data.loader import Loader
from dskd.engine.evaluate import EvaluationResult, evaluate_accuracy
from dskd.methods.base import Method
from dskd.models.plain_copy import plain_copy
from dskd.models.staged_model import StagedModel
from dskd.runtime import distributed
from dskd.runtime.nonfinite import nonfinite_buffers


class StudentAverage:
    """An exponential moving average of what a method deploys.

    After update t, ``average = d average + (1 - d) student`` with ``d = min(decay, (1 + t) / (10 +
    t))``: a short run is not dominated by its initial weights. The statistics of BatchNorm are
    averaged in the same way; counters are copied. So are buffers that start as infinite, such as
    masks: the average of two infinite numbers is NaN.

    Source: the averaging is torch's `AveragedModel`. The rising decay is that of TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates``.

    Args:
        method: On its device, before the first step.
        decay: From 0, below 1.

    Attributes:
        model: The averaged student with its normalisation.
    """

    def __init__(self, method: Method, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._averaged = AveragedModel(
            plain_copy(method.deployed()), multi_avg_fn=self._add, use_buffers=True
        ).requires_grad_(False)
        self._copied = nonfinite_buffers(self._averaged.module)
        mean, std = (
            value.flatten().tolist() for value in (method.student.mean, method.student.std)
        )
        device = method.student.mean.device
        self.model = StagedModel(self._averaged.module, mean=mean, std=std).to_device(device)
        self.model.int8 = method.student.int8

    @property
    def module(self) -> nn.Module:
        """The averaged module to deploy."""
        return self.model.module

    def update(self, method: Method) -> None:
        """Adds the weights of now to the average."""
        current = method.deployed_view()
        self._averaged.update_parameters(current)
        self._copy(current)
        self.updates += 1

    @torch.no_grad()
    def _copy(self, current: nn.Module) -> None:
        """Takes over the buffers that are not averaged."""
        if self._copied:
            pairs = zip(self.module.named_buffers(), current.buffers(), strict=True)
            for (name, own), other in pairs:
                if name in self._copied:
                    own.copy_(other)

    @torch.no_grad()
    def _add(self, averaged: Any, current: Any, _: Any) -> None:
        """One update of tensors of one type."""
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def evaluate(self, loader: Loader) -> EvaluationResult:
        """Evaluates the average of rank 0 on a split.

        Processes may differ in BatchNorm statistics, and in weights that a method makes of them.
        """
        distributed.broadcast([*self.model.parameters(), *self.model.buffers()])
        return evaluate_accuracy(
            self.model, lambda images: {"ema": self.model(images).logits}, loader
        )["ema"]

    def state(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state."""
        self.module.load_state_dict(state["module"])
        self.updates = int(state["updates"])
        self._averaged.n_averaged.fill_(self.updates)
