"""Feature maps: bringing two of them to one size, and the squared error between them.

Shapes: ``B`` images, ``C`` channels, ``H x W`` positions.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.checks import (
    check_choice,
    check_same_batch,
    check_same_channels,
    check_tensor,
    described,
)
from dskd.losses.logits import Reduction
from dskd.losses.precision import in_full_precision
from dskd.runtime import distributed

FeatureScale = Literal["relative", "none"]

ZERO = 1e-20
"""A teacher's map whose mean square is below this counts as a map of zeros."""


@in_full_precision
def feature_loss(
    adapted: Tensor,
    target: Tensor,
    scale: FeatureScale = "relative",
    reduction: Reduction = "mean",
) -> Tensor:
    """``M = MSE(A, F_t) / mean(F_t^2)``: 0 for equal maps, 1 for a prediction of zeros.

    Source: Luo et al., IJCNN 2023, abstract (feature maps supervise shallow layers). The division
    is *our choice*: a weight then means the same for every teacher. A teacher's maps that are zero
    everywhere (their mean square is below 1e-20) have no scale; they are compared as with ``none``.

    Args:
        adapted: The branch's map A, ``[B, C, H, W]``.
        target: The target map F_t, of the same shape.
        scale: ``relative``, or ``none`` for the plain mean squared error.
        reduction: ``mean`` over the batch, or ``none`` for one value per image, ``[B]``.

    Raises:
        InputError: The shapes differ, or ``scale`` or ``reduction`` does not exist.

    Example:
        >>> target = torch.ones(2, 3, 4, 4)
        >>> feature_loss(torch.zeros_like(target), target).item()
        1.0
    """
    check_choice("scale", scale, get_args(FeatureScale))
    check_choice("reduction", reduction, get_args(Reduction))
    for maps in (adapted, target):
        check_tensor(maps, "feature maps [B, C, H, W]")
    if adapted.shape != target.shape:
        raise InputError(
            f"feature maps differ in shape, got branch {described(adapted)}, "
            f"teacher {described(target)}"
        )
    squared = squared_error(adapted - target, target, scale)
    return squared.mean() if reduction == "mean" else squared


def squared_error(difference: Tensor, target: Tensor, scale: FeatureScale) -> Tensor:
    """The value of `feature_loss` for each image, ``[B]``.

    Args:
        difference: Of the two maps, in float32 or more.
        target: The target map, of the same shape.
        scale: See `feature_loss`.
    """
    squared: Tensor = mean_squares(difference)
    if scale == "relative":
        size = distributed.weighted_mean(mean_squares(target).mean(), len(target))
        squared = squared / size.masked_fill(size < ZERO, 1)
    return squared


def mean_squares(maps: Tensor) -> Tensor:
    """The mean square of each image's map, ``[B]``.

    Example:
        >>> mean_squares(torch.tensor([[[[1.0, 3.0]]], [[[0.0, 2.0]]]])).tolist()
        [5.0, 2.0]
    """
    squares: Tensor = _SumsOfSquares.apply(maps)
    return squares / maps[0].numel()


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller height and width of both; the larger map is average-pooled.

    Raises:
        InputError: They are not maps of the same images.
    """
    check_same_batch(student, teacher, 4, "feature maps [B, C, H, W]")
    return pool_to(student, *teacher.shape[2:]), pool_to(teacher, *student.shape[2:])


def comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """As `pooled_alike`, for maps that must have the same channels too.

    Raises:
        InputError: They are not maps of the same images and channels.
    """
    student, teacher = pooled_alike(student, teacher)
    check_same_channels(student, teacher)
    return student, teacher


def pool_to(feature_map: Tensor, height: int, width: int) -> Tensor:
    """``feature_map`` average-pooled to ``height`` x ``width``; a smaller side stays as it is.

    If the sizes do not divide, the pooling windows still cover the map without overlap; a cell on
    a border counts in part for both windows. So every position has the same weight, and the
    average of the map stays the same. (Adaptive pooling counts some positions more than others,
    and its gradient on a GPU is not deterministic.)

    Example:
        >>> pool_to(torch.zeros(1, 2, 8, 8), 4, 16).shape
        torch.Size([1, 2, 4, 8])
        >>> pool_to(torch.tensor([[[[0.0, 3.0, 6.0]]]]), 1, 2).tolist()
        [[[[1.0, 5.0]]]]
    """
    h, w = feature_map.shape[2:]
    height, width = min(h, height), min(w, width)
    if (h, w) == (height, width):
        return feature_map
    if h % height == 0 and w % width == 0:
        pooled: Tensor = _Tiles.apply(feature_map, h // height, w // width)
        return pooled
    rows, columns = _windows(h, height, feature_map), _windows(w, width, feature_map)
    return rows @ feature_map @ columns.T


def _windows(cells: int, windows: int, like: Tensor) -> Tensor:
    """``[windows, cells]``: the share of each window that lies in each cell."""
    # In units of 1 / (cells windows) of the side all numbers are whole, so nothing is rounded.
    cell = torch.arange(cells, device=like.device) * windows
    window = torch.arange(windows, device=like.device)[:, None] * cells
    overlap = torch.minimum(cell + windows, window + cells) - torch.maximum(cell, window)
    return overlap.clamp_min(0).to(like.dtype) / cells


class _SumsOfSquares(torch.autograd.Function):
    """The sum of the squares of each image's map, with a faster gradient.

    Backward, torch's norm goes over the maps several times, and ``mse_loss`` gives the gradient
    another memory layout than channels-last maps have. Here it is one product.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.save_for_backward(maps)
        sums: Tensor = torch.linalg.vector_norm(maps, dim=(1, 2, 3)).square()
        return sums

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        product: Tensor = maps * (2 * gradient)[:, None, None, None]
        return product


class _Tiles(torch.autograd.Function):
    """Average pooling over tiles that do not overlap, with a faster gradient.

    The numbers are those of ``F.avg_pool2d``, forward and backward. Its own backward pass allows
    for overlapping windows: it clears the gradient and then adds to it, which takes four times as
    long on a large map.
    """

    @staticmethod
    def forward(ctx: Any, feature_map: Tensor, height: int, width: int) -> Tensor:
        ctx.tile = height, width
        return F.avg_pool2d(feature_map, ctx.tile)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        height, width = ctx.tile
        shared = gradient / (height * width)
        return F.interpolate(shared, scale_factor=ctx.tile, mode="nearest"), None, None
