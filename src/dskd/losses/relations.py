"""Losses between how the images of a batch lie to each other, for student and teacher.

Shapes: ``B`` images, ``D`` features of a pooled vector, ``C`` channels, ``H x W`` positions.
Except for the neighbours of `cc`, the two sides may differ in all but the images.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import unknown
from dskd.losses.precision import check_same_batch, check_same_shape, in_full_precision

Congruence = Literal["neighbours", "gaussian", "bilinear"]


def unit(vectors: Tensor) -> Tensor:
    """``vectors`` of length 1 along the last dimension; those of no length stay zero.

    These have no direction, and get no gradient: divided by a small number in place of their
    length, they would get one as large as that number is small.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    directions: Tensor = vectors / lengths.masked_fill(lengths < 1e-12, math.inf)
    return directions


@in_full_precision
def sp(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Similarity preserving: ``||G_s - G_t||_F^2 / B^2``, G the similarities of the images.

    ``G`` is ``Q Q^T`` with rows of unit length, Q the images' maps, flattened.

    Source: Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682,
    equations 2 to 4. torchdistill's rows have an absolute sum of 1 in place of a length of 1,
    which is not the paper's.

    Args:
        student_map: ``[B, C, H, W]``.
        teacher_map: Of the same images.

    Raises:
        InputError: The maps are not of the same images.

    Example:
        >>> maps = torch.rand(3, 2, 4, 4)
        >>> sp(maps, 5 * maps).item() < 1e-12
        True
    """
    check_same_batch(student_map, teacher_map, 4, "feature maps [B, C, H, W]")
    return (_similarities(student_map) - _similarities(teacher_map)).square().mean()


def _similarities(feature_map: Tensor) -> Tensor:
    images = feature_map.flatten(1)
    return unit(images @ images.T)


@in_full_precision
def cc(
    student: Tensor,
    teacher: Tensor,
    form: Congruence = "neighbours",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """Correlation congruence: ``mean_i sum_d |s_i - t_i|_d |s_i+1 - t_i+1|_d``, or the paper's.

    - ``neighbours``: the above, over neighbours i, i + 1 in the batch; 0 for a lone image. This
      is what the field runs and published weights belong to: CRD's repository has it from the
      paper's author, and it is not the paper's equation.
    - ``gaussian``, ``bilinear``: the paper's, ``||K(s) - K(t)||_F^2 / B^2`` with K the kernel of
      each two images' vectors of unit length: ``exp(-2 gamma) sum_p (2 gamma x . y)^p / p!`` for
      p from 0 to ``order``, the beginning of the series of the Gaussian's, or ``x . y``.
      torchdistill's value is the norm without its square.

    Source: Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019,
    arXiv 1904.01802, section 3.

    Args:
        student: ``[B, D]``.
        teacher: Of the same images; for ``neighbours`` of as many features.
        form: Which of the above.
        gamma: Of the Gaussian.
        order: At which power its series ends.

    Raises:
        InputError: There is no such form, or the shapes do not fit.

    Example:
        >>> cc(torch.ones(3, 2), torch.zeros(3, 2)).item()
        2.0
    """
    check_same_batch(student, teacher, 2, "vectors [B, D]")
    if form == "neighbours":
        check_same_shape(student, teacher, "vectors [B, D]")
        away = (student - teacher).abs()
        return (away[:-1] * away[1:]).sum() / max(len(away) - 1, 1)
    if form not in get_args(Congruence):
        raise unknown("form", form, get_args(Congruence))
    # The bilinear kernel is the series' term of order 1 alone.
    factors = _taylor(gamma, order) if form == "gaussian" else [0.0, 1.0]
    return (_kernel(student, factors) - _kernel(teacher, factors)).square().mean()


def _taylor(gamma: float, order: int) -> list[float]:
    """What each power of ``x . y`` is multiplied by in ``exp(-gamma |x - y|^2)``, x and y unit."""
    return [
        math.exp(-2 * gamma) * (2 * gamma) ** power / math.factorial(power)
        for power in range(order + 1)
    ]


def _kernel(vectors: Tensor, factors: list[float]) -> Tensor:
    """``sum_p factors[p] (x . y)^p`` for each two of the vectors, of unit length: ``[B, B]``."""
    directions = unit(vectors)
    cosines = directions @ directions.T
    kernel = torch.full_like(cosines, factors[-1])
    for factor in reversed(factors[:-1]):
        kernel = kernel * cosines + factor
    return kernel


@in_full_precision
def rkd(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Relational KD: ``distance * mean h(d_s, d_t) + angle * mean h(a_s, a_t)``, h Huber's loss.

    ``d`` is the distance of each two images over the mean distance of different points, ``a`` the
    cosine of the angle that each two make at a third. All ``B^2`` pairs and ``B^3`` triplets count,
    those of an image with itself as zero, as in the authors' code. The gradient of points that
    coincide is 0.

    It takes memory for ``B^2 D + B^3`` numbers; the second part only where ``angle`` is above 0.

    Source: Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068,
    sections 3.2.1 and 3.2.2.

    Args:
        student: ``[B, D]``.
        teacher: Of the same images.
        distance: Weight of the distances.
        angle: Weight of the angles.

    Raises:
        InputError: The vectors are not of the same images.

    Example:
        >>> vectors = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        >>> rkd(vectors, 3 * vectors).item() < 1e-12
        True
    """
    check_same_batch(student, teacher, 2, "vectors [B, D]")
    s, t = _differences(student), _differences(teacher)
    loss = distance * F.smooth_l1_loss(_distances(s), _distances(t))
    if angle:
        loss = loss + angle * F.smooth_l1_loss(_angles(s), _angles(t))
    return loss


def _differences(vectors: Tensor) -> Tensor:
    """``[B, B, D]``: from the first image to the second."""
    return vectors[None] - vectors[:, None]


def _distances(differences: Tensor) -> Tensor:
    """Lengths over their mean where they are above 0: ``[B, B]``; zeros if all points coincide."""
    lengths = torch.linalg.vector_norm(differences, dim=2)
    mean = lengths.sum() / (lengths > 0).sum().clamp_min(1)
    relative: Tensor = lengths / mean.masked_fill(mean == 0, 1)
    return relative


def _angles(differences: Tensor) -> Tensor:
    """Cosines at the first image between the ways to the second and third: ``[B, B, B]``."""
    directions = unit(differences)
    return directions @ directions.mT


@in_full_precision
def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer: ``mean p_ij log(p_ij / q_ij)`` over all ``B^2`` pairs.

    ``p_ij`` is how likely the teacher's image i takes j for its neighbour, ``q`` the student's:
    ``(1 + cos(x_i, x_j)) / 2``, over its sum for i.

    Source: Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
    ECCV 2018, arXiv 1803.10837, section 3. The paper sums over pairs of different images; its
    authors' code, and the field after it, takes the mean over all, which is what published weights
    belong to.

    Args:
        student: ``[B, D]``.
        teacher: Of the same images.
        eps: Added to both probabilities within the logarithm.

    Raises:
        InputError: The vectors are not of the same images.

    Example:
        >>> vectors = torch.rand(4, 3)
        >>> round(pkt(vectors, 2 * vectors).item(), 5) + 0.0
        0.0
    """
    check_same_batch(student, teacher, 2, "vectors [B, D]")
    q, p = _neighbourhood(student), _neighbourhood(teacher)
    return (p * ((p + eps) / (q + eps)).log()).mean()


def _neighbourhood(vectors: Tensor) -> Tensor:
    """Each image's probabilities over the batch, itself included: ``[B, B]``."""
    directions = unit(vectors)
    # Rounding may put a cosine below -1.
    likeness = (1 + directions @ directions.T).clamp_min(0) / 2
    return likeness / likeness.sum(1, keepdim=True)
