"""Probabilistic knowledge transfer: the student's images neighbour those the teacher's do."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.relations import pkt
from dskd.methods.base import FeatureMethod, Pair, TeacherNeeds, check_pooled
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


class PKT(FeatureMethod):
    """Who is whose neighbour: ``ce * CE + kd * KD + weight * mean_ij p_ij log(p_ij / q_ij)``.

    ``p_ij`` is the probability that image j of the batch is image i's neighbour, by the cosines
    of the teacher's pooled vectors, ``q_ij`` by the student's, see `dskd.losses.pkt`. The vectors
    may differ in length.

    Source: Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
    ECCV 2018, arXiv 1803.10837, section 3. The weight is the one that the field takes for the mean
    in place of the sum (CRD's repository; ``literature`` has no KD).

    Args:
        pair: Student and teacher, of the same classes, that end in linear layers.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the neighbours.
        temperature: T of the predictions.

    Raises:
        InputError: A setting is out of range, or one of the two has no pooled vector.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 30000.0}}

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
        self.needs = TeacherNeeds(logits=True, pooled=True)
        self.weight = weight

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the neighbours."""
        assert student.pooled is not None
        assert teacher.pooled is not None
        return {"pkt": self.weight * pkt(student.pooled, teacher.pooled)}
