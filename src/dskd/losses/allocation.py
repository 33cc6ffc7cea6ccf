"""Loss-based weight allocation: the weight of each stage's loss in a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.checks import check_choice, check_number, described
from dskd.losses.precision import in_full_precision

Allocation = Literal["proportional", "hard-first", "easy-first", "ca-mkd", "uniform"]
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)
AllocationScale = Literal["relative", "raw"]
WeightSum = Literal["count", "one"]

SHARPEST, SOFTEST = 1e-30, 1e30
"""A tau below the first counts as the first, and one above the second as the second, so that every
quotient stays in float32's range. The weights do not change by that."""


@in_full_precision
def allocate(
    losses: Tensor,
    allocation: Allocation = "proportional",
    tau: float = 1.0,
    scale: AllocationScale = "relative",
    weight_sum: WeightSum = "count",
) -> Tensor:
    r"""Weights of the losses: ``w_l >= 0``, and they sum to the number of branches.

    ``S`` are the losses of the ``N`` branches. All rules use ``r = S / mean(S)``, so that the scale
    of the losses does not matter; with ``scale="raw"`` the softmax rules use ``r = S``:

    - ``proportional``: ``w = r``
    - ``hard-first``: ``w = N softmax(r / tau)``
    - ``easy-first``: ``w = N softmax(-r / tau)``
    - ``ca-mkd``: ``w = N (1 - softmax(r / tau)) / (N - 1)``
    - ``uniform``: ``w = 1``

    If all losses are zero, or one is NaN, or there is only one branch, ``w = 1``. If some are
    infinite, they count as 1 and the others as 0. So the weights are finite whatever the losses
    are. No gradient passes through them. They are computed in float32 or more.

    Source: the abstract of Luo et al. (IJCNN 2023, arXiv 2202.07846) says that the allocation is
    based on the losses; the rules are *our choice*. A re-implementation for language models
    (github.com/leahphw/babylm) reads the full text as ``hard-first`` with raw losses and a sum of
    1. ``ca-mkd`` is the rule by which the same
    research group weights teachers: Zhang, Chen, Wang, Confidence-Aware Multi-Teacher Knowledge
    Distillation, ICASSP 2022, arXiv 2201.00007, equation 4.

    Args:
        losses: ``[N]``, one loss per branch, or ``[N, B]``, one per branch and image; all >= 0.
        allocation: The rule.
        tau: Temperature of the softmax rules, above 0. A small one favours single branches, a
            large one gives nearly equal weights.
        scale: ``relative`` or ``raw``.
        weight_sum: ``count``, or ``one``: all weights are divided by ``N``.

    Returns:
        The weights, in the shape of ``losses``; each column sums to ``N``, or to 1.

    Raises:
        InputError: The rule, scale or sum does not exist, tau is not above 0, or the losses have
            another shape.

    Example:
        >>> allocate(torch.tensor([1.0, 3.0]))
        tensor([0.5000, 1.5000])
    """
    check_choice("allocation", allocation, ALLOCATIONS)
    check_choice("allocation scale", scale, get_args(AllocationScale))
    check_choice("sum of the weights", weight_sum, get_args(WeightSum))
    check_number("tau", tau)
    if not tau > 0:
        raise InputError(f"tau must be above 0, got {tau}")
    per_branch = isinstance(losses, Tensor) and losses.dim() in (1, 2) and losses.numel() > 0
    if not per_branch or not losses.is_floating_point():
        raise InputError(f"losses [N] or [N, B] are needed, got {described(losses)}")
    losses = losses.detach().clamp_min(0)  # rounding can make a divergence slightly negative
    weights = _weights(losses, allocation, min(max(tau, SHARPEST), SOFTEST), scale)
    return weights / len(losses) if weight_sum == "one" else weights


def _weights(losses: Tensor, allocation: Allocation, tau: float, scale: AllocationScale) -> Tensor:
    """The weights with the sum ``N``."""
    count = len(losses)
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
    sign = -1 if allocation == "easy-first" else 1
    basis = sign * relative
    if scale == "raw":
        basis = sign * torch.where(losses.isnan().any(0), 1, losses)
        basis = basis - basis.amax(0)  # a small tau would otherwise make infinite quotients
    shares = torch.softmax(basis / tau, dim=0)
    return count * (1 - shares) / (count - 1) if allocation == "ca-mkd" else count * shares


def weighted_stages(
    predictions: Tensor,
    features: Tensor,
    alpha: float,
    beta: float,
    rule: Allocation,
    names: Sequence[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    """``sum_l w_l (alpha P_l + beta M_l)`` with joint weights, as other tasks than images have it.

    Args:
        predictions: P_l, ``[N]``.
        features: M_l, ``[N]``.
        alpha: Weight of the predictions.
        beta: Weight of the features.
        rule: Of the weights w_l.
        names: Of the stages, for the log.

    Returns:
        The sum, and the terms of each stage by name, detached.

    Example:
        >>> total, terms = weighted_stages(
        ...     torch.tensor([1.0, 3.0]), torch.zeros(2), 1.0, 1.0, "uniform", ["a", "b"])
        >>> total, terms["b/weight"]
        (tensor(4.), tensor(1.))
    """
    joint = alpha * predictions + beta * features
    weights = allocate(joint, rule)
    terms = {"prediction": predictions, "feature": features, "weight": weights}
    shown = {
        f"{stage}/{name}": values[row].detach()
        for row, stage in enumerate(names)
        for name, values in terms.items()
    }
    return (weights * joint).sum(), shown
