"""Loss scaling for float16: small gradients stay above 0, and steps that overflow are skipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dskd.errors import InputError, first_line
from dskd.runtime.device import autocast


class LossScaler:
    """torch's `GradScaler`, which counts the steps that it skips.

    The loss is multiplied by a scale before the backward pass, and the gradients are divided by it
    afterwards. If a gradient overflows, the step is skipped and the scale halved; after 2000 steps
    without that it is doubled. At a scale of 1 or less, an overflow is an error as in float32.

    Args:
        device: That trains.

    Attributes:
        skipped: Steps skipped in the running epoch.
    """

    def __init__(self, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type)
        self.skipped = 0

    @property
    def may_skip(self) -> bool:
        """Whether a gradient that is not finite may come from the scale."""
        return self._scaler.get_scale() > 1

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradients by the scale."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Updates the weights, unless a gradient overflowed, and then the scale."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def skip(self) -> None:
        """Counts a step whose gradients overflowed, and halves the scale.

        The optimizer is not called. A fused SGD would make its momentum in the first step, and
        leave it without values.
        """
        self.skipped += 1
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """The scale, the steps since it changed, and the steps skipped in the epoch."""
        return {"scaler": self._scaler.state_dict(), "skipped": self.skipped}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state."""
        self._scaler.load_state_dict(state["scaler"])
        self.skipped = int(state["skipped"])


def check_float16(device: torch.device) -> None:
    """Refuses a device on which torch cannot train in float16.

    Raises:
        InputError: It cannot.
    """
    layer = torch.nn.Conv2d(1, 1, 1).to(device)
    try:
        with autocast(device, "float16"):
            layer(torch.ones(1, 1, 2, 2, device=device)).float().sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"train.precision=float16: torch cannot train in it on {device.type} here "
            f"({first_line(error)}); take bfloat16 or float32"
        ) from error
