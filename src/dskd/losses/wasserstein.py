"""Wasserstein distances of predictions and of feature maps, and distances between classes.

Shapes: ``B`` images, ``K`` classes, ``C`` channels, ``H x W`` positions.

Source: Lv, Yang, Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
Distillation, NeurIPS 2024, arXiv 2412.08139, in the form of the authors' code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.checks import (
    check_number,
    check_same_batch,
    check_same_channels,
    check_same_shape,
    check_temperature,
    check_tensor,
    described,
)
from dskd.losses.feature_maps import pool_to
from dskd.losses.precision import in_full_precision

TINY = 1e-8
"""Added to costs and divisors, as in the authors' code."""
LARGEST_GRAM = 2**24
"""The most numbers that `class_distances` holds of one product."""


@in_full_precision
def transport(
    student_logits: Tensor,
    teacher_logits: Tensor,
    cost: Tensor,
    temperature: float = 8.0,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """The cost of moving the student's predictions to the teacher's: ``mean_b sum_ij F_ij C_ij``.

    The flow ``F = diag(u) exp(-C / regularization) diag(v)`` comes from Sinkhorn's iterations: v
    is scaled to the teacher's softmax at T, then u to the student's. The gradient passes through
    all of them.

    The number of iterations is part of the loss. After ten, the published number, the flow may
    still miss the teacher's softmax widely: at T = 8, the value for random logits of 100 classes is
    about half of the limit's. More iterations come nearer to the limit.

    Source: its WKD-L; Cuturi, Sinkhorn Distances, NeurIPS 2013, arXiv 1306.0895.

    Args:
        student_logits: ``[B, K]``; a class with the logit minus infinity takes no part.
        teacher_logits: ``[B, K]``, with the same classes left out.
        cost: ``[K, K]``. Costs below 0 count as 0.
        temperature: T, above 0.
        regularization: Above 0; the flow concentrates where it is small.
        iterations: Of u and v, 1 or more.

    Raises:
        InputError: A number is out of range, or the shapes do not fit.

    Example:
        >>> left, right = torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 10.0]])
        >>> round(transport(left, right, 1 - torch.eye(2), temperature=1.0).item(), 2)
        1.0
    """
    check_temperature(temperature)
    check_temperature(regularization, "regularization")
    check_number("iterations", iterations, least=1)
    check_same_shape(student_logits, teacher_logits, "logits [B, K]")
    check_tensor(cost, "a cost for each two classes [K, K]")
    classes = student_logits.shape[1]
    if cost.shape != (classes, classes):
        raise InputError(
            f"a cost for each two of {classes} classes is needed, [{classes}, {classes}], got "
            f"{described(cost)}"
        )
    own = F.softmax(student_logits / temperature, dim=1)
    taught = F.softmax(teacher_logits / temperature, dim=1)
    cost = cost.clamp_min(0) + TINY
    kernel = torch.exp(-cost / regularization)
    takes_part = student_logits > -math.inf
    u = takes_part.to(own.dtype) / takes_part.sum(1, keepdim=True)
    for _ in range(int(iterations)):
        v = taught / (u @ kernel + TINY)
        u = own / (v @ kernel.T + TINY)
    return (u * (v @ (kernel * cost).T)).sum(1).mean()


@in_full_precision
def gaussian_distance(
    student_map: Tensor, teacher_map: Tensor, ratio: float = 4.0, grid: int = 1
) -> Tensor:
    """WKD-F: ``ratio |m_s - m_t|^2 + |d_s - d_t|^2``, averaged over images and cells.

    m and d are the mean and the standard deviation of each channel over the positions of a cell,
    and the squares are summed over the channels. With ``ratio`` 1 this is the squared Wasserstein
    distance of two Gaussians with diagonal covariance.

    Source: its WKD-F. The variance is unbiased, and 1e-5 is added to it, as in the
    authors' code. *Our choice*: a cell of one position has the variance 0; cells whose borders
    cross a position count it in part.

    Args:
        student_map: ``[B, C, H, W]``, projected to the teacher's channels.
        teacher_map: ``[B, C, H', W']``.
        ratio: Weight of the means.
        grid: Cells on each side, 1 or more; a smaller map decides about both.

    Raises:
        InputError: A number is out of range, or the maps are not of the same images and channels.

    Example:
        >>> gaussian_distance(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 8, 8)).item()
        12.0
    """
    check_number("ratio", ratio)
    check_number("grid", grid, least=1)
    check_same_batch(student_map, teacher_map, 4, "feature maps [B, C, H, W]")
    check_same_channels(student_map, teacher_map)
    height, width = (
        min(int(grid), one, other)
        for one, other in zip(student_map.shape[2:], teacher_map.shape[2:], strict=True)
    )
    (mean_s, std_s), (mean_t, std_t) = (
        _statistics(maps, height, width) for maps in (student_map, teacher_map)
    )
    of_means, of_stds = (mean_s - mean_t).square(), (std_s - std_t).square()
    return (ratio * of_means + of_stds).sum(1).mean()


def _statistics(feature_map: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in each cell, ``[B, C, height, width]``."""
    center = feature_map.mean((2, 3), keepdim=True)
    centered = feature_map - center  # else the variance would be a difference of large numbers
    mean = pool_to(centered, height, width)
    positions = feature_map[0, 0].numel() / (height * width)
    variance = (pool_to(centered.square(), height, width) - mean.square()).clamp_min(0)
    unbiased = variance * (positions / max(positions - 1, 1))
    return center + mean, (unbiased + 1e-5).sqrt()


@in_full_precision
def class_distances(features: Tensor) -> Tensor:
    """How far each two classes are from each other: 1 - linear CKA of their images.

    ``CKA = |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F)``, with X and Y ``[N, D]`` of two classes centred
    over the images.

    Source: its cost between classes; Kornblith et al., Similarity of Neural Network Representations
    Revisited, ICML 2019, arXiv 1905.00414. The n-th image of one class is compared with the n-th of
    another; the pairs have no meaning of their own.

    Args:
        features: ``[K, N, D]``: for each class, the teacher's outputs for N images.

    Returns:
        ``[K, K]``, from 0 to 1. A class whose images all have one output has the distance 1 from
        all others.

    Raises:
        InputError: These are not such outputs.

    Example:
        >>> class_distances(torch.tensor([[[0.0], [1.0]], [[1.0], [3.0]]])).tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
    check_tensor(features, "outputs of images of each class [K, N, D]")
    features = features - features.mean(1, keepdim=True)
    classes, images, _ = features.shape
    # |X^T Y|_F^2 = sum of (X X^T) * (Y Y^T): the products of N x N matrices, some rows at a time.
    rows = max(1, LARGEST_GRAM // (classes * images))
    products = features.new_zeros(classes, classes)
    for first in range(0, images, rows):
        gram = (features[:, first : first + rows] @ features.mT).flatten(1)
        products += gram @ gram.T
    norms = products.diagonal().sqrt()
    scale = norms[:, None] * norms
    similar = products / scale.masked_fill(scale == 0, math.inf)
    return (1 - similar).clamp(0, 1).fill_diagonal_(0)
