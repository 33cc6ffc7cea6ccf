"""Losses between many maps at once, once trained parts have fused or projected the student's.

Shapes: ``B`` images, ``C`` channels, ``H x W`` positions, ``S`` and ``T`` stages of student and
teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.feature_maps import pool_to, pooled_alike
from dskd.losses.precision import in_full_precision

LEVELS = (4, 2, 1)
"""Sides of the pooled maps that `reviewkd` compares beside the maps themselves."""


@in_full_precision
def reviewkd(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Hierarchical context loss: ``sum_l (D(F_l, G_l) + sum_k 2^-k D(F_l,k, G_l,k)) / sum_k 2^-k``.

    ``D`` is the mean of the squared differences, and ``F_l,k`` the map pooled to the k-th of the
    sides 4, 2, 1 that are smaller than the map: a larger map is compared as a whole too, position
    by position, with halving weights. A side that is skipped takes no halving with it, and the
    weights, the map's own 1 among them, are divided by their sum.

    Source: Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021,
    arXiv 2104.09044, its hierarchical context loss (HCL). The paper names spatial pyramid pooling
    and an L2 distance; the sides, the weights and the mean are those of its authors' code, which
    mdistiller and torchdistill share. Maps that are not square are the same with each side capped
    at the map's own: *our choice*.

    Args:
        student_maps: ``[B, C_l, H_l, W_l]`` a stage, fused (see `dskd.methods.reviewkd`).
        teacher_maps: As many, of the same channels; of two sizes, the larger map is average-pooled
            to the smaller.

    Raises:
        InputError: Two maps are not of the same images and channels.

    Example:
        >>> maps = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 1, 1)]
        >>> others = [torch.ones(2, 3, 8, 8), 2 * torch.ones(2, 5, 1, 1)]
        >>> reviewkd(maps, others).item()
        5.0
    """
    pairs = zip(student_maps, teacher_maps, strict=True)
    return torch.stack([_hierarchical(*_comparable(s, t)) for s, t in pairs]).sum()


def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of one stage, of two maps of one shape."""
    difference = student - teacher  # pooled, it is the difference of the pooled maps
    loss, weight, total = difference.square().mean(), 1.0, 1.0
    for side in LEVELS:
        if side < max(difference.shape[2:]):
            weight /= 2
            total += weight
            loss = loss + weight * pool_to(difference, side, side).square().mean()
    return loss / total


def _comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps of one size, the smaller one, once they are known to have the same channels."""
    student, teacher = pooled_alike(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise InputError(
            f"maps of the same channels are needed, got {student.shape[1]} of the student, "
            f"{teacher.shape[1]} of the teacher; project the student's first"
        )
    return student, teacher


@in_full_precision
def similarities(feature_map: Tensor) -> Tensor:
    """How alike the images of a batch are to a stage: their maps' inner products, ``[B, B]``.

    Source: Chen et al., AAAI 2021 (see `semckd`): what the attention over layers is told of them.
    The products are of the maps as they are, neither centred nor normalised.

    Args:
        feature_map: ``[B, C, H, W]``.

    Example:
        >>> similarities(torch.ones(2, 3, 1, 2)).tolist()
        [[6.0, 6.0], [6.0, 6.0]]
    """
    rows = feature_map.flatten(1)
    return rows @ rows.T


@in_full_precision
def layer_attention(queries: Tensor, keys: Tensor, softness: float = 1.0) -> Tensor:
    """Which of the teacher's stages each of the student's learns from: ``softmax(q . k / tau)``.

    Queries and keys are brought to unit length first.

    Source: Chen et al., AAAI 2021 (see `semckd`).

    Args:
        queries: ``[B, S, D]``, of the student's stages.
        keys: ``[B, T, D]``, of the teacher's.
        softness: tau, above 0.

    Returns:
        ``[B, S, T]``, of sum 1 over the teacher's stages.

    Raises:
        InputError: ``softness`` is not above 0.

    Example:
        >>> layer_attention(torch.zeros(1, 1, 2), torch.ones(1, 2, 2)).tolist()
        [[[0.5, 0.5]]]
    """
    if not 0 < softness < float("inf"):
        raise InputError(f"softness must be above 0, got {softness}")
    energy = F.normalize(queries, dim=2) @ F.normalize(keys, dim=2).transpose(1, 2)
    return torch.softmax(energy / softness, dim=2)


@in_full_precision
def semckd(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], attention: Tensor
) -> Tensor:
    """Semantic calibration: ``1 / (B S) sum_b,i,j a_b,i,j mean((P_ij(F_i) - G_j)^2)``.

    Every stage of the student learns from every stage of the teacher, image by image as much
    as the attention says.

    Source: Chen et al., Cross-Layer Distillation with Semantic Calibration, AAAI 2021,
    arXiv 2012.03236. The mean over a map's elements and the division by S are those of its
    authors' code, which the published weight belongs to.

    Args:
        student_maps: ``S T`` maps ``[B, C_j, H, W]``: the student's first stage projected for each
            of the teacher's, then its second, and so on.
        teacher_maps: The teacher's map for each of them; of two sizes, the larger map is
            average-pooled to the smaller.
        attention: ``[B, S, T]``, see `layer_attention`.

    Raises:
        InputError: Two maps are not of the same images and channels, or the attention is for
            others.

    Example:
        >>> maps = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 2, 2)]
        >>> others = [torch.ones(2, 3, 4, 4), 2 * torch.ones(2, 5, 2, 2)]
        >>> semckd(maps, others, torch.full((2, 1, 2), 0.5)).item()
        2.5
    """
    pairs = [_comparable(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]
    distances = torch.stack([(s - t).square().flatten(1).mean(1) for s, t in pairs], dim=1)
    if attention.dim() != 3 or attention.flatten(1).shape != distances.shape:
        raise InputError(
            f"attention [B, S, T] for {distances.shape[1]} pairs of stages and "
            f"{len(distances)} images is needed, got {list(attention.shape)}"
        )
    return (attention.flatten(1) * distances).sum() / attention.shape[:2].numel()
