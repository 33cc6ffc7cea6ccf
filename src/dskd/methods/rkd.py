"""Relational knowledge distillation: distances and angles between images are the teacher's."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.relations import rkd
from dskd.methods.base import FeatureMethod, Pair, TeacherNeeds, check_pooled
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


class RKD(FeatureMethod):
    """Distances and angles: ``ce * CE + kd * KD + weight * (distance * L_D + angle * L_A)``.

    ``L_D`` compares the distances of each two images' pooled vectors, ``L_A`` the angles that
    each three make, see `dskd.losses.rkd`. The vectors may differ in length.

    Source: Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068,
    sections 3.2.1 and 3.2.2. The weights are those that the field takes (CRD's repository;
    ``literature`` has no KD).

    Args:
        pair: Student and teacher, of the same classes, that end in linear layers.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of both relations together.
        temperature: T of the predictions.
        distance: Weight of the distances among the relations.
        angle: Weight of the angles among the relations; above 0 it takes memory for a number for
            each three images of a batch.

    Raises:
        InputError: A setting is out of range, or one of the two has no pooled vector.
    """

    presets: ClassVar = {
        "literature": {"ce": 1.0, "kd": 0.0, "weight": 1.0, "distance": 25.0, "angle": 50.0}
    }

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
        self.needs = TeacherNeeds(logits=True, pooled=True)
        self.weight, self.distance, self.angle = weight, distance, angle

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of distances and angles."""
        assert student.pooled is not None
        assert teacher.pooled is not None
        relations = rkd(student.pooled, teacher.pooled, self.distance, self.angle)
        return {"rkd": self.weight * relations}
