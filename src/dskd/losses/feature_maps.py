"""Losses between feature maps, one or several stages at a time.

Shapes: ``B`` images, ``C`` channels, ``H x W`` positions; a list has a map for each stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.precision import check_same_batch, check_same_shape, in_full_precision


def pool_to(feature_map: Tensor, height: int, width: int) -> Tensor:
    """``feature_map`` average-pooled where it is larger than ``height`` x ``width``, else as it is.

    Where sizes do not divide, windows part the map without overlap, through its cells where they
    must: every position counts the same, and the average of the map stays. (Adaptive pooling counts
    some positions more often, and its gradient on a GPU does not repeat.)

    Example:
        >>> import torch
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
    """``[windows, cells]``: which share of each window lies in each cell."""
    # In units of 1 / (cells windows) of the side: whole numbers, so nothing is rounded.
    cell = torch.arange(cells, device=like.device) * windows
    window = torch.arange(windows, device=like.device)[:, None] * cells
    overlap = torch.minimum(cell + windows, window + cells) - torch.maximum(cell, window)
    return overlap.clamp_min(0).to(like.dtype) / cells


class _Tiles(torch.autograd.Function):
    """Averages over tiles that do not overlap: each gives its gradient to all it is made of.

    The numbers of ``F.avg_pool2d`` both ways. But that one's gradient, made for tiles that may
    overlap, is first cleared and then added to, which takes four times as long on a large map.
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


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller height and width of both, each average-pooled where it is larger.

    Raises:
        InputError: They are not maps of the same images.
    """
    check_same_batch(student, teacher, 4, "feature maps [B, C, H, W]")
    return pool_to(student, *teacher.shape[2:]), pool_to(teacher, *student.shape[2:])


def attention(feature_map: Tensor, power: float = 2.0) -> Tensor:
    """Where a map is strong: the channels' mean of ``|F|^power``, of unit length for each image.

    Args:
        feature_map: ``[B, C, H, W]``.
        power: Of the absolute values.

    Returns:
        ``[B, H * W]``.
    """
    if power == 2:
        strength = feature_map.square()  # the same, and its gradient takes a third of the time
    elif power < 1:  # a root of zero has no gradient, and maps behind a ReLU are full of zeros
        zero = feature_map == 0
        strength = feature_map.abs().masked_fill(zero, 1).pow(power).masked_fill(zero, 0)
    else:
        strength = feature_map.abs().pow(power)
    # Not mean(1): its gradient would lie with the channels first, whatever the map.
    return F.normalize((strength.sum(1) / strength.shape[1]).flatten(1))


@in_full_precision
def at(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], power: float = 2.0
) -> Tensor:
    r"""Attention transfer: ``sum_l mean((Q(F_s,l) - Q(F_t,l))^2)`` over images and positions.

    ``Q(F) = q / ||q||`` with ``q`` the channels' mean of ``|F|^power`` at each position.

    Source: Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928,
    equation 2. The paper's equation has the norm of the difference; its authors' code, and the
    field after it, the mean of the squares, which is what published weights belong to.

    Args:
        student_maps: A map ``[B, C, H, W]`` a stage.
        teacher_maps: As many; of two sizes, the larger map is average-pooled to the smaller.
        power: Of the absolute values, above 0.

    Raises:
        InputError: Two maps are not of the same images.

    Example:
        >>> import torch
        >>> maps = [torch.rand(2, 3, 4, 4)]
        >>> at(maps, maps).item()
        0.0
    """
    pairs = [pooled_alike(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]
    terms = [(attention(s, power) - attention(t, power)).square().mean() for s, t in pairs]
    return sum(terms[1:], start=terms[0])


@in_full_precision
def fitnet(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Hint: ``mean((r(F_s) - F_t)^2)`` over images, channels and positions.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550,
    equation 3. The paper has half of the squared norm; the field the mean of the squares, which is
    what published weights belong to.

    Args:
        student_map: ``[B, C, H, W]``, what the regressor r makes of the student's map.
        teacher_map: ``[B, C, H, W]``.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> import torch
        >>> fitnet(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)).item()
        4.0
    """
    check_same_shape(student_map, teacher_map, "feature maps [B, C, H, W]")
    return (student_map - teacher_map).square().mean()


@in_full_precision
def nst(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Neuron selectivity transfer: ``sum_l`` of the squared distance between sets of channels.

    Every channel is a sample, its map ``f_c`` of unit length over the positions a point. The two
    sets of points are compared by their squared maximum mean discrepancy under the kernel
    ``k(f, g) = (f . g)^2``: ``mean k(f, f') + mean k(g, g') - 2 mean k(f, g)`` over all pairs of
    channels, mean over images. The numbers of channels may differ.

    Source: Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
    2017, arXiv 1707.01219, section 4, with the polynomial kernel (d = 2, c = 0) of their best
    results. The paper has half of this under its weight lambda; the field this.

    Args:
        student_maps: A map ``[B, C, H, W]`` a stage.
        teacher_maps: As many; of two sizes, the larger map is average-pooled to the smaller.

    Raises:
        InputError: Two maps are not of the same images.

    Example:
        >>> import torch
        >>> maps = [torch.rand(2, 3, 4, 4)]
        >>> round(nst(maps, maps).item(), 4) + 0.0
        0.0
    """
    pairs = [pooled_alike(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]
    terms = [_discrepancy(_selectivity(s), _selectivity(t)) for s, t in pairs]
    return sum(terms[1:], start=terms[0])


def _selectivity(feature_map: Tensor) -> Tensor:
    """Each channel's map, of unit length over the positions: ``[B, C, H * W]``."""
    return F.normalize(feature_map.flatten(2), dim=2)


def _discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    within = _mean_kernel(student, student) + _mean_kernel(teacher, teacher)
    return within - 2 * _mean_kernel(student, teacher)


def _mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    """The mean of ``(a_c . b_d)^2`` over images and pairs of channels c, d.

    Summed over all pairs it is also the inner product of ``a^T a`` and ``b^T b``, which hold a
    number for each pair of positions: the smaller of the two ways is taken.
    """
    (images, channels, positions), others = a.shape, b.shape[1]
    if positions**2 < channels * others:
        total = ((a.mT @ a) * (b.mT @ b)).sum()
    else:
        total = (a @ b.mT).square().sum()
    return total / (images * channels * others)


@in_full_precision
def vid(
    means: Sequence[Tensor], teacher_maps: Sequence[Tensor], variances: Sequence[Tensor]
) -> Tensor:
    """Variational information: ``sum_l mean(((mu_l - F_t,l)^2 / v_l + log v_l) / 2)``.

    The negative log-likelihood of the teacher's map under a Gaussian with a mean for each value and
    a variance for each channel, without its constant ``log(2 pi) / 2``; it may be negative.

    Source: Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019,
    arXiv 1904.05835, section 2. The paper sums over channels and positions; the field takes the
    mean, which is what published weights belong to.

    Args:
        means: mu, ``[B, C, H, W]`` a stage, what a regressor makes of the student's map.
        teacher_maps: F_t, in the same shapes.
        variances: v, ``[C]`` a stage, above 0.

    Raises:
        InputError: The shapes do not fit.

    Example:
        >>> import torch
        >>> maps = [torch.ones(2, 3, 4, 4)]
        >>> vid(maps, maps, [torch.ones(3)]).item()
        0.0
    """
    stages = zip(means, teacher_maps, variances, strict=True)
    terms = [_negative_log_likelihood(*stage) for stage in stages]
    return sum(terms[1:], start=terms[0])


def _negative_log_likelihood(mean: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    check_same_shape(mean, target, "feature maps [B, C, H, W]")
    if mean.dim() != 4 or variance.shape != mean.shape[1:2]:
        raise InputError(
            f"a variance for each channel [C] of maps [B, C, H, W] is needed, got "
            f"{list(variance.shape)} for {list(mean.shape)}"
        )
    spread = variance[:, None, None]
    return ((mean - target).square() / spread + spread.log()).mean() / 2
