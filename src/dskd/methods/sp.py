"""Similarity-preserving distillation: what is alike for the teacher is for the student."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.relations import sp
from dskd.methods.base import FeatureMethod, Pair, TeacherNeeds, check_stages
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


class SP(FeatureMethod):
    """Similar images stay similar: ``ce * CE + kd * KD + weight * ||G_s - G_t||_F^2 / B^2``.

    ``G`` holds the similarities of each two images of the batch by the last stage's map, see
    `dskd.losses.sp`. The two maps may differ in everything.

    Source: Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682,
    equations 2 to 4. The paper admits several pairs of stages; the field takes the last, and the
    weight is the field's (CRD's repository, whose loss the paper's author checked; ``literature``
    has no KD).

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the similarities.
        temperature: T of the predictions.

    Raises:
        InputError: A setting is out of range, or one of the two has no stages.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 3000.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 3000.0,
        temperature: Positive = 4.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        _, teacher = check_stages(pair)
        self.needs = TeacherNeeds(logits=True, stages=(len(teacher) - 1,))
        self.weight = weight

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the similarities."""
        return {"sp": self.weight * sp(student.stages[-1], teacher.stages[-1])}
