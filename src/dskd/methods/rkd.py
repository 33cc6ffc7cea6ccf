"""Relational knowledge distillation: distances and angles between images are the teacher's."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
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
def rkd_loss(
    student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0
) -> Tensor:
    """Relational KD: ``distance * mean h(d_s, d_t) + angle * mean h(a_s, a_t)``, h Huber's loss.

    ``d`` is the distance between two images, divided by the mean distance of different points.
    ``a`` is the cosine of the angle at one image between two others. All ``B^2`` pairs and ``B^3``
    triplets count; those of an image with itself count as zero, as in the authors' code. Points
    that coincide get no gradient.

    Memory: ``B^2 D + B^3`` numbers; the second part only if ``angle`` is above 0.

    Source: Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068,
    sections 3.2.1 and 3.2.2.

    Args:
        student: ``[B, D]``.
        teacher: Vectors of the same images, of any length.
        distance: Weight of the distances.
        angle: Weight of the angles.

    Raises:
        InputError: The vectors are not of the same images, or a weight is not a number.

    Example:
        >>> vectors = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        >>> rkd_loss(vectors, 3 * vectors).item() < 1e-12
        True
    """
    check_number("distance", distance)
    check_number("angle", angle)
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
    """Lengths divided by the mean of those above 0: ``[B, B]``; zeros if all points coincide."""
    lengths = torch.linalg.vector_norm(differences, dim=2)
    mean = lengths.sum() / (lengths > 0).sum().clamp_min(1)
    relative: Tensor = lengths / mean.masked_fill(mean == 0, 1)
    return relative


def _angles(differences: Tensor) -> Tensor:
    """Cosines at the first image between the directions to the second and the third."""
    directions = unit(differences)
    return directions @ directions.mT  # [B, B, B]


class RKD(FeatureMethod):
    """Distances and angles: ``ce * CE + kd * KD + weight * (distance * L_D + angle * L_A)``.

    ``L_D`` compares the distances between the pooled vectors of each two images, ``L_A`` the angles
    between each three, see `dskd.losses.rkd`. The vectors of student and teacher may differ in
    length.

    Source: Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068,
    sections 3.2.1 and 3.2.2. The weights are those of CRD's repository (``literature`` has no KD).

    Args:
        pair: Student and teacher, of the same classes, that end in linear layers.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of both relations together.
        temperature: T of the predictions.
        distance: Weight of the distances within the relations.
        angle: Weight of the angles within the relations; above 0 it needs memory for B^3
            numbers, one for each triple of the B images of a batch.

    Raises:
        InputError: A setting is out of range, or one of the two has no pooled vector.
    """

    learns_from = "relations"
    presets: ClassVar = {
        "literature": {"ce": 1.0, "kd": 0.0, "weight": 1.0, "distance": 25.0, "angle": 50.0}
    }
    needs = TeacherNeeds(logits=True, pooled=True)

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 1.0,
        temperature: Positive = 4.0,
        distance: Weight = 25.0,
        angle: Weight = 50.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        check_pooled(pair)
        self.weight, self.distance, self.angle = weight, distance, angle

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of distances and angles."""
        assert student.pooled is not None
        assert teacher.pooled is not None
        relations = rkd_loss(student.pooled, teacher.pooled, self.distance, self.angle)
        return {"rkd": self.weight * relations}
