"""Attention transfer: the student's maps are strong where the teacher's are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import check_lists, check_number
from dskd.losses.feature_maps import pooled_alike
from dskd.losses.precision import in_full_precision
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import at_same_depth, check_stages, single_positions
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


@in_full_precision
def at_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], power: float = 2.0
) -> Tensor:
    r"""Attention transfer: ``sum_l mean((Q(F_s,l) - Q(F_t,l))^2)`` over images and positions.

    ``Q(F) = q / ||q||``. At each position, ``q`` is the mean over the channels of ``|F|^power``.

    Source: Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928,
    equation 2. The equation has the norm of the difference. The authors' code and the
    reimplementations after it have the mean of the squares, and the published weights belong to
    that.

    Args:
        student_maps: A map ``[B, C, H, W]`` per stage.
        teacher_maps: As many; of two sizes, the larger map is average-pooled to the smaller.
        power: Exponent of the absolute values, above 0.

    Raises:
        InputError: Two maps are not of the same images, the lists differ in length, or the power is
            not above 0.

    Example:
        >>> import torch
        >>> maps = [torch.rand(2, 3, 4, 4)]
        >>> at_loss(maps, maps).item()
        0.0
    """
    check_lists(student_maps=student_maps, teacher_maps=teacher_maps)
    check_number("power", power)
    if power <= 0:
        raise InputError(f"power must be above 0, got {power}")
    pairs = [pooled_alike(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]
    terms = [(attention_map(s, power) - attention_map(t, power)).square().mean() for s, t in pairs]
    return sum(terms[1:], start=terms[0])


def attention_map(feature_map: Tensor, power: float = 2.0) -> Tensor:
    """The strength of each position: the channels' mean of ``|F|^power``, normalised per image.

    Args:
        feature_map: ``[B, C, H, W]``.
        power: Exponent of the absolute values.

    Returns:
        ``[B, H * W]``, of length 1 for each image.
    """
    if power == 2:
        strength = feature_map.square()  # the same values; its gradient takes a third of the time
    elif power < 1:  # a root has no gradient at 0, and maps after a ReLU are full of zeros
        zero = feature_map == 0
        strength = feature_map.abs().masked_fill(zero, 1).pow(power).masked_fill(zero, 0)
    else:
        strength = feature_map.abs().pow(power)
    # mean(1) would give a channels-last map a gradient in another memory layout.
    return F.normalize((strength.sum(1) / strength.shape[1]).flatten(1))


class AT(FeatureMethod):
    """Attention maps of every stage: ``ce * CE + kd * KD + weight * sum_l mean (Q_s,l - Q_t,l)^2``.

    ``Q`` is the strength of a map at each position, see `dskd.losses.at`. Stage ``l`` of the
    student's L is paired with stage ``ceil(l L_t / L)`` of the teacher's L_t. A pair
    with a single position teaches nothing; a line in the log says so.

    Source: Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928, equation 2. The weight is that of
    CRD's repository for this form of the loss (``literature`` has no KD).

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the attention maps.
        temperature: T of the predictions.
        power: Exponent of the absolute values in an attention map.

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
        self.warnings = single_positions(pair, "at") if weight else ()

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the attention maps."""
        targets = [teacher.stages[target] for target in self.targets]
        return {"at": self.weight * at_loss(student.stages, targets, self.power)}
