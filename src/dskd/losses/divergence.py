"""The divergence of predictions that a temperature has softened, exact at any temperature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SOFT = 20.0
"""Above this temperature, the predictions of both models are close to uniform. Their divergence is
then a small difference of large numbers, which float32 cannot hold. Below it, the plain formula is
accurate to about 1e-5."""

NEAR = 0.01
"""Below this difference of log-probabilities, `divergence` uses a series."""


def softened(logits: Tensor, temperature: float) -> Tensor:
    """``logits / T``, in float64 if the temperature is above `SOFT`."""
    return (logits.double() if temperature > SOFT else logits) / temperature


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``KL(p || q)`` of each row, ``[B]``, exact at any temperature.

    Rows of nearly equal probabilities: with ``x = log q - log p`` less its mean under ``p``, the
    divergence is ``log(1 + sum p (e^x - 1 - x))``. No term is negative, and nothing cancels.

    Args:
        student: ``log q``, ``[B, K]``.
        teacher: ``log p``, ``[B, K]``.
        temperature: T, which the logits were divided by (`softened`).
    """
    plain = F.kl_div(student, teacher, log_target=True, reduction="none").sum(1)
    if temperature <= SOFT:
        return plain
    p = teacher.exp()
    x = student - teacher
    x = x - (p * x).sum(1, keepdim=True)
    near = (x.detach().abs() < NEAR).all(1)
    x = x.masked_fill(~near[:, None], 0)
    # e^x - 1 - x, to the last digit of float64 below `NEAR`
    excess = x.square() / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))))
    return torch.where(near, (p * excess).sum(1).log1p(), plain)
