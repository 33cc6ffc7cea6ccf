"""Probabilistic knowledge transfer: the student's images have the teacher's neighbours."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.checks import check_number, check_same_batch
from dskd.losses.precision import in_full_precision
from dskd.losses.vectors import unit
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_pooled
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


@in_full_precision
def pkt_loss(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer: ``mean p_ij log(p_ij / q_ij)`` over all ``B^2`` pairs.

    ``p_ij`` is the teacher's probability that image j is a neighbour of image i, ``q_ij`` the
    student's: ``(1 + cos(x_i, x_j)) / 2``, divided by its sum over j.

    Source: Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
    ECCV 2018, arXiv 1803.10837, section 3. The paper sums over pairs of different images. The
    authors' code and the reimplementations after it take the mean over all, and the published
    weights belong to that.

    Args:
        student: ``[B, D]``.
        teacher: Vectors of the same images, of any length.
        eps: Added to both probabilities inside the logarithm.

    Raises:
        InputError: The vectors are not of the same images, or ``eps`` is below 0.

    Example:
        >>> import torch
        >>> vectors = torch.rand(4, 3)
        >>> round(pkt_loss(vectors, 2 * vectors).item(), 5) + 0.0
        0.0
    """
    check_number("eps", eps, least=0)
    check_same_batch(student, teacher, 2, "vectors [B, D]")
    q, p = _neighbourhood(student), _neighbourhood(teacher)
    return (p * ((p + eps) / (q + eps)).log()).mean()


def _neighbourhood(vectors: Tensor) -> Tensor:
    """Each image's probabilities over the batch, itself included: ``[B, B]``."""
    directions = unit(vectors)
    # Rounding can make a cosine smaller than -1.
    likeness = (1 + directions @ directions.T).clamp_min(0) / 2
    return likeness / likeness.sum(1, keepdim=True)


class PKT(FeatureMethod):
    """Neighbourhoods of images: ``ce * CE + kd * KD + weight * mean_ij p_ij log(p_ij / q_ij)``.

    ``p_ij`` is the probability that image j of the batch is a neighbour of image i, from the
    cosines between the teacher's pooled vectors; ``q_ij`` is the student's, see `dskd.losses.pkt`.
    The vectors of student and teacher may differ in length.

    Source: Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
    ECCV 2018, arXiv 1803.10837, section 3. The weight is that of CRD's repository, for the mean
    instead of the sum (``literature`` has no KD).

    Args:
        pair: Student and teacher, of the same classes, that end in linear layers.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the neighbourhoods.
        temperature: T of the predictions.

    Raises:
        InputError: A setting is out of range, or one of the two has no pooled vector.
    """

    learns_from = "relations"
    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 30000.0}}
    needs = TeacherNeeds(logits=True, pooled=True)

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 30000.0,
        temperature: Positive = 4.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        check_pooled(pair)
        self.weight = weight

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the neighbourhoods."""
        assert student.pooled is not None
        assert teacher.pooled is not None
        return {"pkt": self.weight * pkt_loss(student.pooled, teacher.pooled)}
