"""Losses that tell images apart: each must be found again among others.

Shapes: ``B`` images, ``D`` features, ``N`` images of the training split, ``K`` classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError
from dskd.losses.logits import kd
from dskd.losses.precision import check_same_batch, check_temperature, in_full_precision

VIEWS = 4
"""An image as it is, and turned by 90, 180 and 270 degrees."""


class CRDTerms(NamedTuple):
    """What contrastive representation distillation gives.

    Attributes:
        loss: Scalar.
        log_z: The logarithms of the constants that scores are divided by, ``[2]``, for the
            student's vectors and for the teacher's; without gradient.
    """

    loss: Tensor
    log_z: Tensor


@in_full_precision
def crd_terms(
    student: Tensor,
    teacher: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    contrasted: Tensor,
    log_z: Tensor,
    temperature: float = 0.07,
) -> CRDTerms:
    """The loss of `crd`, which says what each argument is, and the constants that it used."""
    _check_contrast(student, teacher, student_memory, teacher_memory, contrasted)
    check_temperature(temperature)
    images, drawn = len(student_memory), contrasted.shape[1]
    # Products with the whole memory are far less to move than the contrasted rows of it.
    products = torch.stack([student @ teacher_memory.T, teacher @ student_memory.T])
    scores = products.gather(2, contrasted.expand(2, -1, -1)) / temperature
    mean = scores.detach().flatten(1).logsumexp(1) - math.log(len(student) * drawn)
    log_z = torch.where(log_z.isinf(), mean + math.log(images), log_z)
    # h = p / (p + M / N) is the logistic function of these.
    odds = scores - log_z[:, None, None] - math.log((drawn - 1) / images)
    positive = F.softplus(-odds[:, :, 0]).sum()
    negative = F.softplus(odds[:, :, 1:]).sum()
    return CRDTerms((positive + negative) / len(student), log_z)


def crd(
    student: Tensor,
    teacher: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    contrasted: Tensor,
    log_z: Tensor | None = None,
    temperature: float = 0.07,
) -> Tensor:
    r"""Contrastive representation distillation: find an image's own vector among many others.

    For each of the two sides, with the vectors of one and the memory of the other::

        p_k = exp(<v, m_k> / T) / Z,    h_k = p_k / (p_k + M / N)
        loss = -mean over the batch of (log h_0 + sum_{k = 1 .. M} log(1 - h_k))

    ``m_0`` is the image's own row, ``m_1 .. m_M`` are those that it is contrasted with. Computed
    from logarithms, so that no temperature overflows.

    Source: Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020,
    arXiv 1910.10699, section 3.1 (equation 18 by the count of its authors' code). The paper has
    no ``Z``; its authors' code sets it once, from the first batch, to ``N`` times the mean score,
    and adds 1e-7 to ``M / N``, which is left out here.

    Args:
        student: Unit vectors of the student, ``[B, D]``.
        teacher: Unit vectors of the teacher, ``[B, D]``.
        student_memory: The student's vectors of all images as kept so far, ``[N, D]``.
        teacher_memory: The teacher's, ``[N, D]``.
        contrasted: int64 ``[B, 1 + M]``, rows of the memories: the image's own, then M others.
        log_z: Logarithms of Z for the student's vectors and the teacher's, ``[2]``; where
            infinite, and by default, set from this batch.
        temperature: T, above 0.

    Raises:
        InputError: The shapes do not fit, or the temperature is not above 0.

    Example:
        >>> vectors, memory = torch.eye(2), torch.eye(2)
        >>> contrasted = torch.tensor([[0, 1], [1, 0]])
        >>> apart = crd(vectors, vectors, memory, memory, contrasted)
        >>> mistaken = crd(vectors, vectors, memory, memory, 1 - contrasted)
        >>> bool(apart < mistaken)
        True
    """
    if log_z is None:
        log_z = torch.full((2,), math.inf, device=student.device)
    return crd_terms(
        student, teacher, student_memory, teacher_memory, contrasted, log_z, temperature
    ).loss


def _check_contrast(
    student: Tensor,
    teacher: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    contrasted: Tensor,
) -> None:
    check_same_batch(student, teacher, 2, "vectors [B, D]")
    check_same_batch(student_memory, teacher_memory, 2, "memories [N, D]")
    lengths = {tensor.shape[1] for tensor in (student, teacher, student_memory, teacher_memory)}
    if len(lengths) > 1:
        raise InputError(
            f"vectors and memories of one length are needed, got lengths {sorted(lengths)}"
        )
    if contrasted.dim() != 2 or len(contrasted) != len(student) or contrasted.shape[1] < 2:
        raise InputError(
            "contrasted must name each image's own row and one other at least, "
            f"[{len(student)}, 1 + M], got {list(contrasted.shape)}"
        )


@in_full_precision
def remembered(memory: Tensor, indices: Tensor, vectors: Tensor, momentum: float) -> Tensor:
    """A memory whose rows ``indices`` have moved towards ``vectors``, as a new tensor.

    ``m_i = normalized(momentum m_i + (1 - momentum) v_i)``.

    Source: the authors' code of CRD (`crd`).

    Args:
        memory: ``[N, D]``; the gradient of a loss on it is still to be computed, so it stays.
        indices: int64 ``[B]``, each row once.
        vectors: ``[B, D]``.
        momentum: From 0, below 1.

    Example:
        >>> remembered(torch.eye(2), torch.tensor([1]), torch.tensor([[0.0, 2.0]]), 0.5).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    rows = momentum * memory[indices] + (1 - momentum) * vectors.detach()
    return memory.index_copy(0, indices, F.normalize(rows))


def found_again(vectors: Tensor) -> Tensor:
    """How much each turned image is like every image as it is: cosines ``[3 B, B]``.

    Args:
        vectors: ``[4 B, D]``, in the order of `dskd.data.transforms.rotations`.

    Raises:
        InputError: They are not vectors of four views of each image.
    """
    if vectors.dim() != 2 or len(vectors) == 0 or len(vectors) % VIEWS:
        raise InputError(
            f"vectors [{VIEWS} B, D] of every image and its rotations are needed, "
            f"got {list(vectors.shape)}"
        )
    images = len(vectors) // VIEWS
    units = F.normalize(vectors)
    return units[images:] @ units[:images].T


def _own(similarities: Tensor) -> Tensor:
    """The column of each turned image's own image: int64 ``[3 B]``."""
    images = similarities.shape[1]
    return torch.arange(images, device=similarities.device).repeat(VIEWS - 1)


def trusted(scores: Tensor, truth: Tensor, share: float) -> Tensor:
    """Which rows of a teacher's scores are learned from: the right ones and the least wrong.

    A row is the more wrong, the more entries score above the true one. Of the wrong rows
    ``floor(share * count)`` are kept; the earlier of two that are equally wrong. Nothing here
    waits for the device.

    Source: Xu et al., ECCV 2020 (`sskd`), section 3.3 (selective transfer).

    Args:
        scores: ``[R, K]``.
        truth: int64 ``[R]``, each row's true column.
        share: Of the wrong rows, from 0 to 1.

    Returns:
        bool ``[R]``.

    Example:
        >>> scores = torch.tensor([[3.0, 2.0, 1.0]]).expand(3, -1)
        >>> trusted(scores, torch.tensor([2, 0, 1]), 0.5).tolist()
        [False, True, True]
    """
    errors = (scores > scores.gather(1, truth[:, None])).sum(1)
    place = errors.argsort(stable=True).argsort()
    wrong = (errors > 0).sum()
    return place < len(scores) - wrong + (share * wrong.double()).floor()


def _mean_over(values: Tensor, kept: Tensor) -> Tensor:
    """The mean of the kept values; 0 where none is kept."""
    return torch.where(kept, values, 0).sum() / kept.sum().clamp_min(1)


@in_full_precision
def sskd(student: Tensor, teacher: Tensor, share: float = 0.75, temperature: float = 0.5) -> Tensor:
    r"""Self-supervision distilled: how much a turned image is like each image of the batch.

    ``T^2 KL(softmax(c_t / T) || softmax(c_s / T))`` with ``c`` the cosines between a turned
    image's vector and those of all images as they are; the mean over the turned images that
    are trusted: those whose own image the teacher finds, and ``share`` of the others, the least
    wrong first.

    Source: Xu, Liu, Li, Loy, Knowledge Distillation Meets Self-Supervision, ECCV 2020,
    arXiv 2006.07114, section 3.2 (the loss L_ss); ``T^2`` and the mean over trusted images as
    in its authors' code.

    Args:
        student: Vectors ``[4 B, D_s]`` of the student's self-supervision head, in the order of
            `dskd.data.transforms.rotations`.
        teacher: Of the teacher's head, ``[4 B, D_t]``.
        share: Of the turned images that the teacher mistakes, from 0 to 1.
        temperature: T, above 0.

    Raises:
        InputError: The shapes do not fit, or the temperature is not above 0.

    Example:
        >>> vectors = torch.rand(8, 3)
        >>> round(sskd(vectors, 2 * vectors).item(), 6)
        0.0
    """
    check_same_batch(student, teacher, 2, "vectors [4 B, D]")
    targets = found_again(teacher)
    kept = trusted(targets, _own(targets), share)
    return _mean_over(kd(found_again(student), targets, temperature, reduction="none"), kept)


@in_full_precision
def sskd_predictions(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    share: float = 1.0,
    temperature: float = 4.0,
) -> Tensor:
    r"""Classic distillation of what the teacher predicts for turned images.

    ``T^2 KL(softmax(z_t / T) || softmax(z_s / T))``, the mean over the turned images that are
    trusted: those that the teacher classifies as labelled, and ``share`` of the others, the least
    wrong first.

    Source: Xu et al., ECCV 2020 (`sskd`), section 3.2 (the loss L_T).

    Args:
        student_logits: Of turned images only, ``[R, K]``.
        teacher_logits: ``[R, K]``.
        labels: int64 ``[R]``.
        share: Of the turned images that the teacher mistakes, from 0 to 1.
        temperature: T, above 0.

    Raises:
        InputError: The shapes do not fit, or the temperature is not above 0.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> sskd_predictions(logits, logits, torch.tensor([2])).item()
        0.0
    """
    divergence = kd(student_logits, teacher_logits, temperature, reduction="none")
    return _mean_over(divergence, trusted(teacher_logits, labels, share))


@in_full_precision
def sskd_head(vectors: Tensor, temperature: float = 0.5) -> Tensor:
    r"""What a self-supervision head learns by: find a turned image's own among the images.

    Cross-entropy of ``softmax(c / T)``, ``c`` the cosines of `sskd`.

    Source: Xu et al., ECCV 2020 (`sskd`), section 3.1 (contrastive prediction). The temperature
    is the paper's; its authors' code trains the teacher's head at 1.

    Args:
        vectors: ``[4 B, D]``, in the order of `dskd.data.transforms.rotations`.
        temperature: T, above 0.

    Raises:
        InputError: The shape does not fit, or the temperature is not above 0.

    Example:
        >>> sskd_head(torch.rand(4, 3)).item()  # one image is always found
        0.0
    """
    check_temperature(temperature)
    similarities = found_again(vectors)
    return F.cross_entropy(similarities / temperature, _own(similarities))
