"""Similarity-preserving distillation: images that are similar for the teacher stay similar."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.checks import check_same_batch
from dskd.losses.precision import in_full_precision
from dskd.losses.vectors import unit
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_stages
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


@in_full_precision
def sp_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Similarity preserving: ``||G_s - G_t||_F^2 / B^2``, G the similarities of the images.

    ``G`` is ``Q Q^T`` with its rows scaled to unit length; the rows of Q are the images' flattened
    maps. The maps of student and teacher may differ in everything but the images.

    Source: Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682,
    equations 2 to 4. In torchdistill the rows have an absolute sum of 1 instead of length 1, which
    is not the paper's.

    Args:
        student_map: ``[B, C, H, W]``.
        teacher_map: A map of the same images.

    Raises:
        InputError: The maps are not of the same images.

    Example:
        >>> import torch
        >>> maps = torch.rand(3, 2, 4, 4)
        >>> sp_loss(maps, 5 * maps).item() < 1e-12
        True
    """
    check_same_batch(student_map, teacher_map, 4, "feature maps [B, C, H, W]")
    return (_similarities(student_map) - _similarities(teacher_map)).square().mean()


def _similarities(feature_map: Tensor) -> Tensor:
    images = feature_map.flatten(1)
    return unit(images @ images.T)


class SP(FeatureMethod):
    """Similar images stay similar: ``ce * CE + kd * KD + weight * ||G_s - G_t||_F^2 / B^2``.

    ``G`` holds the similarity of each two images of the batch in the map of the last stage, see
    `dskd.losses.sp`. The two maps may differ in everything but the images.

    Source: Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682,
    equations 2 to 4. The paper allows several pairs of stages. The last stage and the weight are
    those of CRD's repository, whose loss the paper's author checked (``literature`` has no KD).

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the similarities.
        temperature: T of the predictions.

    Raises:
        InputError: A setting is out of range, or one of the two has no stages.
    """

    learns_from = "relations"
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
        return {"sp": self.weight * sp_loss(student.stages[-1], teacher.stages[-1])}
