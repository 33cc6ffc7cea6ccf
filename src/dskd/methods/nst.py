"""Neuron selectivity transfer: the student's channels respond where the teacher's do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.checks import check_lists
from dskd.losses.feature_maps import pooled_alike
from dskd.losses.precision import in_full_precision
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import at_same_depth, check_stages, single_positions
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


@in_full_precision
def nst_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Neuron selectivity transfer: the sum over stages of a distance between sets of channels.

    Each channel is a sample: its map ``f_c``, scaled to unit length over the positions. The
    distance is the squared maximum mean discrepancy of the two sets with the kernel
    ``k(f, g) = (f . g)^2``: ``mean k(f, f') + mean k(g, g') - 2 mean k(f, g)`` over all pairs of
    channels, averaged over images. The numbers of channels may differ.

    Source: Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
    2017, arXiv 1707.01219, section 4, with the polynomial kernel (d = 2, c = 0) of its best
    results. The paper has half of this under its weight lambda; the reference implementations have
    this.

    Args:
        student_maps: A map ``[B, C, H, W]`` per stage.
        teacher_maps: As many; of two sizes, the larger map is average-pooled to the smaller.

    Raises:
        InputError: Two maps are not of the same images, or the lists differ in length.

    Example:
        >>> import torch
        >>> maps = [torch.rand(2, 3, 4, 4)]
        >>> round(nst_loss(maps, maps).item(), 4) + 0.0
        0.0
    """
    check_lists(student_maps=student_maps, teacher_maps=teacher_maps)
    pairs = [pooled_alike(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]
    terms = [_discrepancy(_selectivity(s), _selectivity(t)) for s, t in pairs]
    return sum(terms[1:], start=terms[0])


def _selectivity(feature_map: Tensor) -> Tensor:
    """The map of each channel, scaled to unit length over the positions: ``[B, C, H * W]``."""
    return F.normalize(feature_map.flatten(2), dim=2)


def _discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    within = _mean_kernel(student, student) + _mean_kernel(teacher, teacher)
    return within - 2 * _mean_kernel(student, teacher)


def _mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    """The mean of ``(a_c . b_d)^2`` over images and pairs of channels c, d.

    The sum over all pairs is also the inner product of ``a^T a`` and ``b^T b``, which have a value
    for each pair of positions. The smaller of the two products is computed.
    """
    (images, channels, positions), others = a.shape, b.shape[1]
    if positions**2 < channels * others:
        total = ((a.mT @ a) * (b.mT @ b)).sum()
    else:
        total = (a @ b.mT).square().sum()
    return total / (images * channels * others)


class NST(FeatureMethod):
    """Channel selectivity at every stage: ``ce * CE + kd * KD + weight * sum_l MMD^2_l``.

    The channels of a stage are a set of points for each image. ``MMD^2`` is the distance between
    the student's set and the teacher's, see `dskd.losses.nst`. Stage ``l`` of the student's L is
    paired with stage ``ceil(l L_t / L)`` of the teacher's L_t. A pair with
    a single position teaches nothing; a line in the log says so.

    Source: Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
    2017, arXiv 1707.01219, section 4. The weight is that of CRD's repository (``literature`` has no
    KD).

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the distance between the channels.
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
        self.warnings = single_positions(pair, "nst") if weight else ()

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The distance between the sets of channels."""
        targets = [teacher.stages[target] for target in self.targets]
        return {"nst": self.weight * nst_loss(student.stages, targets)}
