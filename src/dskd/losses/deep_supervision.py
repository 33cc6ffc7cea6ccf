"""The objective of DSKD, reconstructed from its abstract: the equations, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.allocation import Allocation, allocate
from dskd.losses.logits import LogitLoss, Reduction, bind
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.precision import in_full_precision
from dskd.runtime import distributed
from dskd.settings import Positive, Weight, checked

FeatureScale = Literal["relative", "none"]
WeightsPer = Literal["batch", "sample"]


class DSKDTerms(NamedTuple):
    """What DSKD minimises, term by term.

    Attributes:
        ce: ``ce * CE(z_s, y)``, scalar.
        kd: ``kd * T^2 KL`` at the deep layer, scalar.
        shallow: ``sum_l w_l S_l``, scalar.
        predictions: ``P_l``, ``[N]``, detached.
        features: ``M_l``, ``[N]``, detached.
        weights: ``w_l``, ``[N]`` (the mean over the batch where weights are per sample).
    """

    ce: Tensor
    kd: Tensor
    shallow: Tensor
    predictions: Tensor
    features: Tensor
    weights: Tensor

    @property
    def objective(self) -> Tensor:
        """``D + sum_l w_l S_l``."""
        return self.ce + self.kd + self.shallow


@in_full_precision
def feature_loss(
    adapted: Tensor,
    target: Tensor,
    scale: FeatureScale = "relative",
    reduction: Reduction = "mean",
) -> Tensor:
    """``M_l = MSE(A_l(F_l), F_t) / mean(F_t^2)``: 0 is perfect, 1 is what predicting zero costs.

    Source: Luo et al., IJCNN 2023, abstract (feature maps supervise shallow layers); the scale is
    *our choice*, so that ``beta`` means the same for every teacher.

    Args:
        adapted: The branch's map, ``[B, C_t, H, W]``.
        target: The teacher's map, in the same shape.
        scale: ``relative``, or ``none`` for the plain mean squared error.
        reduction: ``mean`` over the batch, or ``none`` for a value an image, ``[B]``.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> target = torch.ones(2, 3, 4, 4)
        >>> feature_loss(torch.zeros_like(target), target).item()
        1.0
    """
    if adapted.shape != target.shape:
        raise InputError(
            f"feature maps differ in shape: branch {list(adapted.shape)}, "
            f"teacher {list(target.shape)}"
        )
    # Not mse_loss, not flattened: the gradient would turn maps that have their channels last.
    squared = _norm(adapted - target).square() / target[0].numel()
    if scale == "relative":
        size = distributed.weighted_mean(
            _norm(target).square().mean() / target[0].numel(), len(target)
        )
        squared = squared / size.clamp_min(torch.finfo(target.dtype).tiny)
    return squared.mean() if reduction == "mean" else squared


def _norm(maps: Tensor) -> Tensor:
    """Of each image's map, ``[B]``."""
    norm: Tensor = torch.linalg.vector_norm(maps, dim=(1, 2, 3))
    return norm


def dskd_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    branch_logits: Sequence[Tensor],
    branch_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    *,
    ce: float,
    kd: float,
    alpha: float,
    beta: float,
    gamma: float,
    allocation: Allocation,
    tau: float,
    weights_per: WeightsPer,
    feature_scale: FeatureScale,
    deep_loss: LogitLoss,
    prediction_loss: LogitLoss,
) -> DSKDTerms:
    """The terms of `dskd`, which says what each argument is; the logit losses come bound."""
    reduction: Reduction = "none" if weights_per == "sample" else "mean"
    predictions = torch.stack(
        [prediction_loss(z, teacher_logits, labels, reduction=reduction) for z in branch_logits]
    )
    features = torch.stack(
        [
            feature_loss(adapted, target, feature_scale, reduction)
            for adapted, target in zip(branch_maps, teacher_maps, strict=True)
        ]
    )
    shallow = alpha * predictions + beta * features  # S_l
    if gamma:
        by_labels = [cross_entropy(z, labels, reduction) for z in branch_logits]
        shallow = shallow + gamma * torch.stack(by_labels)
    # An image is on one rank only: per sample there is nothing to average.
    basis = shallow if weights_per == "sample" else distributed.weighted_mean(shallow, len(labels))
    weights = allocate(basis, allocation, tau)
    return DSKDTerms(
        ce=ce * cross_entropy(student_logits, labels),
        kd=kd * deep_loss(student_logits, teacher_logits, labels, reduction="mean"),
        shallow=(weights * shallow).sum(0).mean(),
        predictions=_over_images(predictions),
        features=_over_images(features),
        weights=_over_images(weights),
    )


def _over_images(values: Tensor) -> Tensor:
    """``[N]`` or ``[N, B]`` to ``[N]``, detached."""
    return values.detach().reshape(len(values), -1).mean(1)


@checked
def dskd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    branch_logits: Sequence[Tensor],
    branch_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    *,
    temperature: Positive = 4.0,
    ce: Weight = 1.0,
    kd: Weight = 1.0,
    alpha: Weight = 1.0,
    beta: Weight = 10.0,
    gamma: Weight = 0.0,
    allocation: Allocation = "proportional",
    tau: Positive = 1.0,
    weights_per: WeightsPer = "batch",
    feature_scale: FeatureScale = "relative",
    deep_loss: str = "kd",
    prediction_loss: str = "kl",
) -> Tensor:
    r"""Knowledge distillation with deep supervision: the whole objective of a batch.

    With branches ``l = 1 .. N`` on the shallow stages::

        D    = ce CE(z_s, y) + kd T^2 KL(softmax(z_t / T) || softmax(z_s / T))
        P_l  = T^2 KL(softmax(z_t / T) || softmax(z_l / T))
        M_l  = MSE(A_l, F_t) / mean(F_t^2)
        S_l  = alpha P_l + beta M_l + gamma CE(z_l, y)
        loss = D + sum_l w_l S_l,    w = allocate(S), without gradient

    Source: Luo, Chen, Wang, Knowledge Distillation with Deep Supervision, IJCNN 2023,
    arXiv 2202.07846. A reconstruction from the abstract: that P, M and a loss-based allocation
    act on the shallow layers is the paper's; the forms of M_l, S_l and of the allocation are
    *our choice*.

    Args:
        student_logits: z_s, ``[B, K]``.
        teacher_logits: z_t, ``[B, K]``.
        labels: y, int64, ``[B]``.
        branch_logits: z_l, N tensors ``[B, K]``.
        branch_maps: A_l(F_l), N tensors ``[B, C_t, H, W]``.
        teacher_maps: F_t for each branch, in the branch's shape.
        temperature: T, above 0.
        ce: Weight of the labels at the deep layer.
        kd: Weight of the teacher at the deep layer.
        alpha: Weight of the predictions P_l.
        beta: Weight of the feature maps M_l.
        gamma: Weight of the labels on the branches (DSN's term).
        allocation: See `dskd.losses.allocation.allocate`.
        tau: Temperature of the softmax allocations, above 0.
        weights_per: One weight a branch for the ``batch``, or for every ``sample``.
        feature_scale: ``relative``, or ``none`` for a plain MSE.
        deep_loss: The logit loss at the deep layer, a key of `LOGIT_LOSSES`.
        prediction_loss: The logit loss in the branches, a key of `LOGIT_LOSSES`.

    Returns:
        A scalar.

    Raises:
        InputError: A setting is out of range, shapes do not fit, or ``prediction_loss`` has no
            value for an image where weights are per sample.

    Example:
        >>> z, y = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> maps = [torch.ones(2, 4, 2, 2)]
        >>> round(dskd(z, z, y, [z], maps, maps).item(), 4)  # only the labels are left to learn
        1.0986
    """
    return dskd_terms(
        student_logits,
        teacher_logits,
        labels,
        branch_logits,
        branch_maps,
        teacher_maps,
        ce=ce,
        kd=kd,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        allocation=allocation,
        tau=tau,
        weights_per=weights_per,
        feature_scale=feature_scale,
        deep_loss=bind(deep_loss, temperature, {}),
        prediction_loss=bind(prediction_loss, temperature, {}),
    ).objective
