"""Losses of the methods that use the teacher's classifier again.

Shapes: ``B`` images, ``D`` numbers in the vector that the teacher's classifier sees, ``K``
classes, ``H x W`` positions.
"""

from __future__ import annotations

from torch import Tensor

from dskd.errors import InputError
from dskd.losses.feature_maps import pooled_alike
from dskd.losses.precision import check_same_shape, in_full_precision


@in_full_precision
def srrl(
    student: Tensor,
    teacher: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    feature: float = 1.0,
    regression: float = 1.0,
) -> Tensor:
    """Softmax regression representation: ``alpha mean((h - g)^2) + beta mean((W h - W g)^2)``.

    ``h`` is the student's vector, connected to the teacher's length, ``g`` the teacher's, and
    ``W`` the teacher's frozen classifier: it says which differences between the two matter.

    Source: Yang, Martinez, Bulat, Tzimiropoulos, Knowledge Distillation via Softmax Regression
    Representation Learning, ICLR 2021, its losses L_FM and L_SR. Both are means over all elements
    as in its authors' code.

    Args:
        student: h, ``[B, D]``.
        teacher: g, ``[B, D]``.
        student_logits: W h, ``[B, K]``.
        teacher_logits: The teacher's own, ``[B, K]``.
        feature: alpha, the weight of the vectors.
        regression: beta, the weight of the logits.

    Raises:
        InputError: Vectors or logits differ in shape.

    Example:
        >>> import torch
        >>> zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
        >>> srrl(zeros, ones, zeros, 2 * ones).item()
        5.0
    """
    check_same_shape(student, teacher, "vectors [B, D]")
    check_same_shape(student_logits, teacher_logits, "logits [B, K]")
    of_vectors = (student - teacher).square().mean()
    of_logits = (student_logits - teacher_logits).square().mean()
    return feature * of_vectors + regression * of_logits


@in_full_precision
def simkd(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The reused classifier's features: ``mean((P(F) - G)^2)``.

    Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022,
    arXiv 2203.14001. The mean over all elements is that of its authors' code.

    Where sizes do not divide, its authors' adaptive pooling counts some positions more often than
    others. Here every position counts the same (see `dskd.losses.feature_maps.pool_to`): the pooled map
    keeps its average, which is what the classifier sees. Where they divide it is the same.

    Args:
        student_map: P(F), ``[B, D, H, W]``, the student's map projected to the teacher's channels.
        teacher_map: G, ``[B, D, H', W']``; of two sizes, the larger map is average-pooled to the
            smaller.

    Raises:
        InputError: The maps are not of the same images and channels.

    Example:
        >>> import torch
        >>> simkd(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 8, 8)).item()
        1.0
    """
    student, teacher = pooled_alike(student_map, teacher_map)
    if student_map.shape[1] != teacher_map.shape[1]:
        raise InputError(
            f"maps of the same channels are needed, got {student_map.shape[1]} of the student, "
            f"{teacher_map.shape[1]} of the teacher; project the student's first"
        )
    return (student - teacher).square().mean()
