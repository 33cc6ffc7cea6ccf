"""Losses on logits. DSKD can use each of them at its deep layer and in its branches.

Every function computes in float32 or more, whatever the precision of the logits, and stays finite
for logits of +-100. At temperatures above 20 it computes in float64, see `dskd.losses.divergence`.
Shapes: ``B`` images, ``K`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError, unknown
from dskd.losses.checks import (
    check_choice,
    check_flag,
    check_labels,
    check_number,
    check_same_shape,
    check_targets,
    check_temperature,
    check_tensor,
)
from dskd.losses.divergence import SOFT, divergence, softened
from dskd.losses.precision import in_full_precision

Reduction = Literal["mean", "none"]


class LogitLoss(Protocol):
    """A logit loss whose settings are bound: the common signature of all of them."""

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        *,
        reduction: Reduction,
    ) -> Tensor:
        """The loss, a scalar for ``mean`` and ``[B]`` for ``none``."""


def check_logits(student_logits: Tensor, teacher_logits: Tensor, classes: int = 1) -> None:
    """Refuses logits of two shapes, or of fewer classes than this."""
    check_same_shape(student_logits, teacher_logits, "logits [B, K]")
    if student_logits.shape[1] < classes:
        raise InputError(
            f"logits of {classes} or more classes are needed, got {student_logits.shape[1]}"
        )


def check_reduction(reduction: Reduction) -> None:
    """Refuses a reduction that does not exist."""
    check_choice("reduction", reduction, get_args(Reduction))


def _reduce(per_sample: Tensor, reduction: Reduction) -> Tensor:
    return per_sample.mean() if reduction == "mean" else per_sample


@in_full_precision
def ce(student_logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy with the labels.

    Args:
        student_logits: ``[B, K]``.
        labels: int64, ``[B]``; or soft targets t, ``[B, K]``, for ``-sum_k t_k log p_k``.
        reduction: ``mean`` over the batch, or ``none`` for one value per image.

    Raises:
        InputError: The shapes do not fit, or, on the CPU, a label is not one of the classes. (On a
            GPU, the loss does not wait for the values of the labels, and torch refuses them.)

    Example:
        >>> round(ce(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
        1.3863
    """
    check_tensor(student_logits, "logits [B, K]")
    check_targets(labels, student_logits)
    check_reduction(reduction)
    return F.cross_entropy(student_logits, labels, reduction=reduction)


def standardized(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """The logits of each image, shifted to mean 0 and scaled to standard deviation 1.

    Source: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024,
    arXiv 2403.01427, Algorithm 1. The temperature is applied afterwards.

    Args:
        logits: ``[B, K]``.
        eps: Added to the (unbiased) standard deviation.
    """
    centred = logits - logits.mean(1, keepdim=True)
    # The square root has no gradient at 0, the variance of equal logits.
    variance = logits.var(1, keepdim=True).clamp_min(eps**2)
    return centred / (variance.sqrt() + eps)


@in_full_precision
def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    standardize: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Classic knowledge distillation: ``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015,
    arXiv 1503.02531, section 2. The divergence is the sum over classes and the mean over the batch.

    Args:
        student_logits: ``[B, K]``.
        teacher_logits: ``[B, K]``.
        temperature: T, above 0.
        standardize: Standardise the logits of student and teacher first (Sun et al., CVPR 2024).
        reduction: ``mean`` over the batch, or ``none`` for one value per image.

    Raises:
        InputError: The temperature is not above 0, the shapes differ, or the reduction does not
            exist.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> kd(logits, logits).item()
        0.0
    """
    check_temperature(temperature)
    check_flag("standardize", standardize)
    check_logits(student_logits, teacher_logits, classes=2 if standardize else 1)
    check_reduction(reduction)
    student, teacher = student_logits, teacher_logits
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    values = divergence(
        F.log_softmax(softened(student, temperature), dim=1),
        F.log_softmax(softened(teacher, temperature), dim=1),
        temperature,
    )
    return _reduce((temperature**2 * values).to(student.dtype), reduction)


def other_classes(values: Tensor, labels: Tensor) -> Tensor:
    """``values`` ``[B, K]`` without the column of each row's label: ``[B, K - 1]``.

    Example:
        >>> other_classes(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1]))
        tensor([[1., 3.]])
    """
    column = torch.arange(values.shape[1] - 1, device=values.device).expand(len(values), -1)
    return values.gather(1, column + (column >= labels[:, None]).long())


def _target_and_rest(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of the label and of all other classes together: ``[B, 2]``."""
    target = log_probabilities.gather(1, labels[:, None])
    rest = other_classes(log_probabilities, labels).logsumexp(1, keepdim=True)
    return torch.cat([target, rest], dim=1)


@in_full_precision
def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Decoupled knowledge distillation: ``alpha * TCKD + beta * NCKD``.

    KD's divergence has two parts: TCKD for two outcomes, the label and all other classes together;
    NCKD over the other classes alone. Each has its own weight and the factor ``T^2``. The function
    works with log-probabilities (logsumexp): logits of any size give finite values.

    Source: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679,
    equation 7.

    Args:
        student_logits: ``[B, K]``.
        teacher_logits: ``[B, K]``.
        labels: int64, ``[B]``.
        alpha: Weight of TCKD.
        beta: Weight of NCKD.
        temperature: T, above 0.
        reduction: ``mean`` over the batch, or ``none`` for one value per image.

    Raises:
        InputError: The temperature is not above 0, the shapes do not fit, or, on the CPU, a label
            is not one of the classes.

    Example:
        >>> logits, labels = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2])
        >>> dkd(logits, logits, labels).item()
        0.0
    """
    check_temperature(temperature)
    check_number("alpha", alpha)
    check_number("beta", beta)
    check_logits(student_logits, teacher_logits, classes=2)
    check_labels(labels, student_logits)
    check_reduction(reduction)
    student = softened(student_logits, temperature)
    teacher = softened(teacher_logits, temperature)
    target = divergence(
        _target_and_rest(F.log_softmax(student, 1), labels),
        _target_and_rest(F.log_softmax(teacher, 1), labels),
        temperature,
    )
    others = divergence(
        F.log_softmax(other_classes(student, labels), 1),
        F.log_softmax(other_classes(teacher, labels), 1),
        temperature,
    )
    values = temperature**2 * (alpha * target + beta * others)
    return _reduce(values.to(student_logits.dtype), reduction)


def _correlation(a: Tensor, b: Tensor, dim: int, eps: float) -> Tensor:
    """Pearson's correlation along ``dim``; 0 if either side is constant."""
    a = a - a.mean(dim, keepdim=True)
    b = b - b.mean(dim, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    correlation: Tensor = (a * b).sum(dim) / (norms + eps)
    return correlation


@in_full_precision
def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """DIST: one minus the correlation of the probabilities, within images and within classes.

    ``T^2 (beta (1 - mean_b r(p_b, q_b)) + gamma (1 - mean_k r(p_:k, q_:k)))``. ``p`` and ``q`` are
    the softmax of the logits divided by T, ``r`` is Pearson's correlation.

    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022,
    arXiv 2205.10536, equations 8 to 10.

    Args:
        student_logits: ``[B, K]``.
        teacher_logits: ``[B, K]``.
        beta: Weight of the relation within an image.
        gamma: Weight of the relation within a class, across the batch.
        temperature: T, above 0; the paper uses 1 on ImageNet and 4 on CIFAR-100.
        reduction: ``mean`` only: the relation within a class has no value per image.

    Raises:
        InputError: The temperature is not above 0, the shapes differ, or ``reduction`` is not
            ``mean``.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 4.0], [3.0, 2.0, 0.0]])
        >>> abs(round(dist(logits, logits).item(), 4))
        0.0
    """
    check_temperature(temperature)
    check_number("beta", beta)
    check_number("gamma", gamma)
    check_logits(student_logits, teacher_logits)
    check_reduction(reduction)
    if reduction != "mean":
        raise InputError(
            "the loss 'dist' has no value for a single image (it relates a whole batch); "
            "weight the branches per batch"
        )
    p = F.softmax(softened(student_logits, temperature), dim=1)
    q = F.softmax(softened(teacher_logits, temperature), dim=1)
    # The norms fall with the temperature, and must not fall below the constant that is added.
    eps = 1e-8 * min(1.0, SOFT / temperature) ** 2
    within_images = 1 - _correlation(p, q, dim=1, eps=eps).mean()
    within_classes = 1 - _correlation(p, q, dim=0, eps=eps).mean()
    loss = temperature**2 * (beta * within_images + gamma * within_classes)
    return loss.to(student_logits.dtype)


LOGIT_LOSSES: dict[str, Callable[..., Tensor]] = {
    "kd": kd,
    "kl": kd,  # the name of P_l in DSKD's equations
    "kd-standardized": partial(kd, standardize=True),
    "dkd": dkd,
    "dist": dist,
}
"""The logit losses by their names in the settings ``deep_loss`` and ``prediction_loss``."""

PER_SAMPLE = frozenset(LOGIT_LOSSES) - {"dist"}
"""The logit losses that have one value per image, and so can be weighted per image."""


def bind(name: str, temperature: float, options: dict[str, Any]) -> LogitLoss:
    """The logit loss ``name`` with its settings bound, under the signature of `LogitLoss`.

    Args:
        name: A key of `LOGIT_LOSSES`.
        temperature: T, unless ``options`` gives another.
        options: Further arguments of the function, such as ``{"beta": 2.0}`` for dkd.

    Raises:
        InputError: The name or an option does not exist, or an option is not a number.

    Example:
        >>> loss = bind("dkd", 4.0, {"beta": 2.0})
        >>> logits = torch.zeros(2, 3)
        >>> loss(logits, logits, torch.tensor([0, 1]), reduction="mean").item()
        0.0
    """
    check_choice("logit loss", name, LOGIT_LOSSES)
    known = {
        "dkd": ("alpha", "beta", "temperature"),
        "dist": ("beta", "gamma", "temperature"),
    }.get(name, ("temperature",))
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of the logit loss {name!r}", option, known)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value < math.inf
        ):
            raise InputError(
                f"option {option!r} of the logit loss {name!r} must be a number of 0 or more, "
                f"got {value!r}"
            )
    settings = {"temperature": temperature} | options
    check_temperature(settings["temperature"])
    function = LOGIT_LOSSES[name]

    def loss(
        student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, reduction: Reduction
    ) -> Tensor:
        positional = (labels,) if name == "dkd" else ()
        return function(
            student_logits, teacher_logits, *positional, reduction=reduction, **settings
        )

    return loss
