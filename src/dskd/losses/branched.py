"""Losses of the branches on shallow stages where no other network teaches: labels, and the end.

Shapes: ``B`` images, ``K`` classes; a list has an entry for each branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dskd.losses.deep_supervision import feature_loss
from dskd.losses.feature_maps import pool_to
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.logits import kd as divergence
from dskd.losses.precision import in_full_precision


@in_full_precision
def dsn(branch_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Deep supervision: ``sum_l CE(z_l, y)``.

    Source: Lee, Xie, Gallagher, Zhang, Tu, Deeply-Supervised Nets, AISTATS 2015,
    arXiv 1409.5185, section 2.2 (the companion objectives). The paper has squared hinge losses
    there, each of which counts only above a threshold and fades while training goes on;
    cross-entropy, always, and for good is *our choice*, and what the field makes of it.

    Args:
        branch_logits: z_l, tensors ``[B, K]``, one at least.
        labels: y, int64, ``[B]``.

    Example:
        >>> round(dsn([torch.zeros(2, 4), torch.zeros(2, 4)], torch.tensor([0, 3])).item(), 4)
        2.7726
    """
    return torch.stack([cross_entropy(logits, labels) for logits in branch_logits]).sum()


@in_full_precision
def byot_terms(
    student_logits: Tensor,
    labels: Tensor,
    branch_logits: Sequence[Tensor],
    branch_maps: Sequence[Tensor],
    student_map: Tensor,
    ce: float = 1.0,
    weight: float = 1.0,
    kd: float = 1.0,
    features: float = 0.03,
    temperature: float = 3.0,
) -> dict[str, Tensor]:
    """The terms of `byot`, which says what each argument is, weighted and by name."""
    deepest, last = student_logits.detach(), student_map.detach()
    predictions = [divergence(logits, deepest, temperature) for logits in branch_logits]
    maps = [feature_loss(m, pool_to(last, *m.shape[2:]), "none") for m in branch_maps]
    return {
        "ce": ce * cross_entropy(student_logits, labels),
        "shallow": weight * dsn(branch_logits, labels),
        "kd": kd * torch.stack(predictions).sum(),
        "features": features * torch.stack(maps).sum(),
    }


def byot(
    student_logits: Tensor,
    labels: Tensor,
    branch_logits: Sequence[Tensor],
    branch_maps: Sequence[Tensor],
    student_map: Tensor,
    ce: float = 1.0,
    weight: float = 1.0,
    kd: float = 1.0,
    features: float = 0.03,
    temperature: float = 3.0,
) -> Tensor:
    r"""Self-distillation: the deepest classifier teaches those on the shallow stages.

    ``ce CE(z_s, y) + sum_l (weight CE(z_l, y) + kd T^2 KL(p_s || p_l) + features MSE(A_l, F_s))``,
    ``z_s`` and ``F_s`` without gradient where they teach.

    Source: Zhang et al., Be Your Own Teacher, ICCV 2019, arXiv 1905.08094, the sum of its three
    losses: ``CE(z_s, y) + sum_l ((1 - alpha) CE + alpha KL + lambda ||A_l - F_s||^2)``, hence
    ``ce = 1, weight = 1 - alpha, kd = alpha / T^2``. Its KL is not multiplied by ``T^2``; the
    mean in place of the sum over a map's values, so that a weight means the same for maps of any
    size, is *our choice*.

    Args:
        student_logits: z_s, ``[B, K]``.
        labels: y, int64, ``[B]``.
        branch_logits: z_l, tensors ``[B, K]``, one at least.
        branch_maps: A_l, as many tensors ``[B, C, H, W]``.
        student_map: F_s, ``[B, C, H', W']``; average-pooled to a branch's map where it is larger.
        ce: Weight of the labels at the deepest classifier.
        weight: Weight of the labels at each branch.
        kd: Weight of the deepest classifier's predictions.
        features: Weight of the deepest map.
        temperature: T, above 0.

    Raises:
        InputError: The shapes do not fit, or the temperature is not above 0.

    Example:
        >>> z, y, maps = torch.zeros(2, 4), torch.tensor([0, 3]), torch.ones(2, 3, 2, 2)
        >>> round(byot(z, y, [z], [maps], maps).item(), 4)  # only the labels are left to learn
        2.7726
    """
    terms = byot_terms(
        student_logits,
        labels,
        branch_logits,
        branch_maps,
        student_map,
        ce,
        weight,
        kd,
        features,
        temperature,
    )
    return torch.stack(list(terms.values())).sum()
