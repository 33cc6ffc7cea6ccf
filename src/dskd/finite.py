"""Whether every objective was finite: noted where it is computed, so that no step waits for it."""

from __future__ import annotations

import torch
from torch import Tensor


class Finite:
    """Notes objectives on the device, and keeps the first that is not finite from the weights.

    To ask a GPU at every step whether its loss is finite makes it idle until the host has read the
    answer. Here the answer stays on the GPU, in ``found_inf``, which torch's fused optimizers read
    there: from the first objective on that is NaN or infinite they change neither weights nor their
    own state. So the weights are those from before it, whenever the host asks. What forward passes
    change by themselves (BatchNorm's statistics, a method's memories) has gone on until then, as it
    has at the first such step on a CPU: nothing of it may be kept.

    Args:
        optimizer: A fused one.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], 0.1, fused=True)
        >>> finite = Finite(optimizer)
        >>> for factor in (1.0, float("nan"), 1.0):
        ...     optimizer.zero_grad()
        ...     loss = (factor * weight).sum()
        ...     finite.note(loss)
        ...     loss.backward()
        ...     optimizer.step()
        >>> weight.item(), finite.steps_before_bad()
        (0.8999999761581421, 1)
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        device = optimizer.param_groups[0]["params"][0].device
        self._bad = torch.zeros((), device=device)  # float32: what the fused kernels read
        self._good = torch.zeros((), dtype=torch.int64, device=device)
        optimizer.found_inf = self._bad  # type: ignore[attr-defined]

    @torch.no_grad()
    def note(self, objective: Tensor) -> None:
        """Notes an objective, before its optimizer steps."""
        self._bad.logical_or_(~objective.isfinite())
        self._good += self._bad == 0

    def count_from(self, steps: int) -> None:
        """Goes on counting finite objectives from so many."""
        self._good.fill_(steps)

    def steps_before_bad(self) -> int | None:
        """How many objectives came before the first that is not finite; None where all are.

        This waits for the device.
        """
        return int(self._good.item()) if self._bad.item() else None
