"""Loss-based weight allocation: the weight of each shallow stage's loss in a step."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.checks import check_choice, check_number, described
from dskd.losses.precision import in_full_precision

Allocation = Literal["proportional", "hard-first", "easy-first", "ca-mkd", "uniform"]
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)

SHARPEST, SOFTEST = 1e-30, 1e30
"""A tau below the first counts as the first, and one above the second as the second, so that every
quotient stays in float32's range. The weights do not change by that."""


@in_full_precision
def allocate(losses: Tensor, allocation: Allocation = "proportional", tau: float = 1.0) -> Tensor:
    r"""Weights of the shallow losses: ``w_l >= 0``, and they sum to the number of branches.

    ``S`` are the losses of the ``N`` branches. All rules use ``r = S / mean(S)``, so that the scale
    of the losses does not matter:

    - ``proportional``: ``w = r``
    - ``hard-first``: ``w = N softmax(r / tau)``
    - ``easy-first``: ``w = N softmax(-r / tau)``
    - ``ca-mkd``: ``w = N (1 - softmax(r / tau)) / (N - 1)``
    - ``uniform``: ``w = 1``

    If all losses are zero, or one is NaN, or there is only one branch, ``w = 1``. If some are
    infinite, they count as 1 and the others as 0. So the weights are finite whatever the losses
    are. No gradient passes through them. They are computed in float32 or more.

    Source: the abstract of Luo et al. (IJCNN 2023, arXiv 2202.07846) says that the allocation is
    based on the losses; the rules are *our choice*. ``ca-mkd`` is the rule by which the same
    research group weights teachers: Zhang, Chen, Wang, Confidence-Aware Multi-Teacher Knowledge
    Distillation, ICASSP 2022, arXiv 2201.00007, equation 4.

    Args:
        losses: ``[N]``, one loss per branch, or ``[N, B]``, one per branch and image; all >= 0.
        allocation: The rule.
        tau: Temperature of the softmax rules, above 0. A small one favours single branches, a
            large one gives nearly equal weights.

    Returns:
        The weights, in the shape of ``losses``; each column sums to ``N``.

    Raises:
        InputError: The rule does not exist, tau is not above 0, or the losses have another shape.

    Example:
        >>> allocate(torch.tensor([1.0, 3.0]))
        tensor([0.5000, 1.5000])
    """
    check_choice("allocation", allocation, ALLOCATIONS)
    check_number("tau", tau)
    if not tau > 0:
        raise InputError(f"tau must be above 0, got {tau}")
    per_branch = isinstance(losses, Tensor) and losses.dim() in (1, 2) and losses.numel() > 0
    if not per_branch or not losses.is_floating_point():
        raise InputError(f"losses [N] or [N, B] are needed, got {described(losses)}")
    losses = losses.detach().clamp_min(0)  # rounding can make a divergence slightly negative
    count, tau = len(losses), min(max(tau, SHARPEST), SOFTEST)
    if count == 1 or allocation == "uniform":
        return torch.ones_like(losses)
    infinite = losses.isinf()
    losses = torch.where(infinite.any(0), infinite.to(losses.dtype), losses)
    # Divided by the largest first: the mean of tiny or huge losses would leave float32's range.
    relative = losses / losses.amax(0)
    relative = relative / relative.mean(0)
    relative = torch.where(losses.amax(0) > 0, relative, torch.ones_like(losses))
    if allocation == "proportional":
        return relative
    if allocation == "ca-mkd":
        return count * (1 - torch.softmax(relative / tau, dim=0)) / (count - 1)
    sign = 1 if allocation == "hard-first" else -1
    return count * torch.softmax(sign * relative / tau, dim=0)
