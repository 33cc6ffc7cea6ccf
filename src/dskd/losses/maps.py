"""Losses between feature maps, one or several stages at a time.

Shapes: ``B`` pictures, ``C`` channels, ``H x W`` positions; a list has a map for each stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from dskd.losses.precision import check_same_batch, in_full_precision


def pool_to(feature_map: Tensor, height: int, width: int) -> Tensor:
    """``feature_map`` average-pooled where it is larger than ``height`` x ``width``, else as it is.

    Example:
        >>> import torch
        >>> pool_to(torch.zeros(1, 2, 8, 8), 4, 16).shape
        torch.Size([1, 2, 4, 8])
    """
    h, w = feature_map.shape[2:]
    height, width = min(h, height), min(w, width)
    if (h, w) == (height, width):
        return feature_map
    if h % height == 0 and w % width == 0:  # the same numbers, and repeatable on a GPU
        return F.avg_pool2d(feature_map, (h // height, w // width))
    return F.adaptive_avg_pool2d(feature_map, (height, width))


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller height and width of both, each average-pooled where it is larger.

    Raises:
        InputError: They are not maps of the same pictures.
    """
    check_same_batch(student, teacher, 4, "feature maps [B, C, H, W]")
    return pool_to(student, *teacher.shape[2:]), pool_to(teacher, *student.shape[2:])


def attention(feature_map: Tensor, power: float = 2.0) -> Tensor:
    """Where a map is strong: the channels' mean of ``|F|^power``, of unit length for each picture.

    Args:
        feature_map: ``[B, C, H, W]``.
        power: Of the absolute values.

    Returns:
        ``[B, H * W]``.
    """
    return F.normalize(feature_map.abs().pow(power).mean(1).flatten(1))


@in_full_precision
def at(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], power: float = 2.0
) -> Tensor:
    r"""Attention transfer: ``sum_l mean((Q(F_s,l) - Q(F_t,l))^2)`` over pictures and positions.

    ``Q(F) = q / ||q||`` with ``q`` the channels' mean of ``|F|^power`` at each position.

    Source: Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928,
    equation 2. The paper's equation has the norm of the difference; its authors' code, and the
    field after it, the mean of the squares, which is what published weights belong to.

    Args:
        student_maps: A map ``[B, C, H, W]`` a stage.
        teacher_maps: As many; of two sizes, the larger map is average-pooled to the smaller.
        power: Of the absolute values, above 0.

    Raises:
        InputError: Two maps are not of the same pictures.

    Example:
        >>> import torch
        >>> maps = [torch.rand(2, 3, 4, 4)]
        >>> at(maps, maps).item()
        0.0
    """
    pairs = [pooled_alike(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]
    terms = [(attention(s, power) - attention(t, power)).square().mean() for s, t in pairs]
    return sum(terms[1:], start=terms[0])
