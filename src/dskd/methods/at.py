"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.feature_maps import at
from dskd.methods.base import FeatureMethod, Pair, TeacherNeeds, at_same_depth, check_stages
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


class AT(FeatureMethod):
    """Attention maps of every stage: ``ce * CE + kd * KD + weight * sum_l mean (Q_s,l - Q_t,l)^2``.

    ``Q`` says how strong a map is at each position, see `dskd.losses.at`. Each of the student's
    stages is paired with the teacher's at the same relative depth.

    Source: Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928, equation 2. The weight is the one
    that the field takes for this form of the loss (CRD's repository; ``literature`` has no KD).

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the attention maps.
        temperature: T of the predictions.
        power: Of the absolute values in an attention map.

    Raises:
        InputError: A setting is out of range, or one of the two has no stages.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 1000.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 1000.0,
        temperature: Positive = 4.0,
        power: Positive = 2.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_stages(pair)
        self.targets = at_same_depth(len(student), len(teacher))
        self.needs = TeacherNeeds(logits=True, stages=tuple(sorted(set(self.targets))))
        self.weight, self.power = weight, power

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The attention maps' loss."""
        targets = [teacher.stages[target] for target in self.targets]
        return {"at": self.weight * at(student.stages, targets, self.power)}
