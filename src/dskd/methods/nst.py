"""Neuron selectivity transfer: the student's channels select what the teacher's select."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.feature_maps import nst
from dskd.methods.base import FeatureMethod, Pair, TeacherNeeds, at_same_depth, check_stages
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


class NST(FeatureMethod):
    """What channels select, at every stage: ``ce * CE + kd * KD + weight * sum_l MMD^2_l``.

    The channels of a stage are a set of points for each image, and ``MMD^2`` the distance of the
    student's set to the teacher's, see `dskd.losses.nst`. Each of the student's stages is paired
    with the teacher's at the same relative depth.

    Source: Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
    2017, arXiv 1707.01219, section 4. The weight is the one that the field takes (CRD's
    repository; ``literature`` has no KD).

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the channels' distance.
        temperature: T of the predictions.

    Raises:
        InputError: A setting is out of range, or one of the two has no stages.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 50.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 50.0,
        temperature: Positive = 4.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_stages(pair)
        self.targets = at_same_depth(len(student), len(teacher))
        self.needs = TeacherNeeds(logits=True, stages=tuple(sorted(set(self.targets))))
        self.weight = weight

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The distance between the sets of channels."""
        targets = [teacher.stages[target] for target in self.targets]
        return {"nst": self.weight * nst(student.stages, targets)}
