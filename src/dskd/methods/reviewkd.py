"""Knowledge review: the student's deeper stages help its shallower ones to match the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.losses.checks import check_lists
from dskd.losses.feature_maps import comparable, mean_squares
from dskd.losses.map_structure import pyramid
from dskd.losses.precision import in_full_precision
from dskd.methods.base import RAMPED, FeatureMethod, ramp
from dskd.methods.checks import at_same_depth, check_classes, check_stages
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.methods.stage_fusion import Fusion
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec
from dskd.settings import Count, Epochs, Positive, Weight, checked


@in_full_precision
def reviewkd_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Hierarchical context loss: ``sum_l (D(F_l, G_l) + sum_k 2^-k D(F_l,k, G_l,k)) / W``.

    ``F_l`` are the student's fused maps, ``G_l`` the teacher's, and ``W = 1 + sum_k 2^-k``. ``D``
    is the mean of the squared differences. The map is also pooled to 4x4, 2x2 and 1x1, as far as it
    is larger than that; ``F_l,k`` is the k-th of these pooled maps. So the map is compared as it is
    and at coarser and coarser resolutions, with halving weights.

    Source: Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021,
    arXiv 2104.09044, its hierarchical context loss (HCL). The paper names spatial pyramid pooling
    and an L2 distance. The sides, the weights and the mean are those of the authors' code, which
    mdistiller and torchdistill share. For maps that are not square, a pooled side is at most the
    map's own: *our choice*.

    Args:
        student_maps: ``[B, C_l, H_l, W_l]`` per stage, fused (see `dskd.methods.reviewkd`).
        teacher_maps: As many, of the same channels; of two sizes, the larger map is average-pooled
            to the smaller.

    Raises:
        InputError: Two maps are not of the same images and channels, or the lists differ in length.

    Example:
        >>> maps = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 1, 1)]
        >>> others = [torch.ones(2, 3, 8, 8), 2 * torch.ones(2, 5, 1, 1)]
        >>> reviewkd_loss(maps, others).item()
        5.0
    """
    check_lists(student_maps=student_maps, teacher_maps=teacher_maps)
    pairs = zip(student_maps, teacher_maps, strict=True)
    return torch.stack([_hierarchical(*comparable(s, t)) for s, t in pairs]).sum()


def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of one stage, from two maps of one shape."""
    # Pooling the difference gives the difference of the pooled maps.
    levels = [(w, mean_squares(part).mean()) for w, part in pyramid(student - teacher)]
    loss = levels[0][1]
    for weight, level in levels[1:]:
        loss = loss + weight * level
    return loss / sum(weight for weight, _ in levels)


class ReviewKD(FeatureMethod):
    """Fused stages, deepest first: ``ce * CE + kd * KD + weight * HCL(fused F_s,l, F_t,l)``.

    From the deepest stage to the shallowest, each student map is fused with the fused map of the
    stage after it (`Fusion`). The result is compared with the teacher's map at several
    resolutions, see `dskd.losses.reviewkd`. Stage ``l`` of the student's L is paired with stage
    ``ceil(l L_t / L)`` of the teacher's L_t. If both models have a pooled vector, it counts as one
    more stage, the deepest, with a single position.

    Source: Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv
    2104.09044, its attention based fusion (ABF) and hierarchical context loss (HCL). The published
    runs use the teacher's maps before their last ReLU. Here they are the outputs of the stages. In
    the package's own models a stage ends after the ReLU, except in wrn and MobileNetV2. The
    authors' scripts have another weight for each pair: 5 for resnet32x4-resnet8x4,
    resnet32x4-ShuffleV1 and wrn_40_2 with each of its students, 8 for resnet32x4-ShuffleV2, 1 for
    resnet110-resnet32, 0.6 for resnet56-resnet20. The weight rises over the first 20 of 240 epochs.
    Here ``warmup`` sets this: 20 in ``literature``, and 0 by default, so that short runs learn from
    the term too. (In the authors' code the weight is 0 in the first epoch; here, as in mdistiller,
    it is ``1 / warmup`` of its final value.)

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the fused stages.
        temperature: T of the predictions.
        warmup: Epochs over which the weight of the fused stages rises.
        width: Channels of the fused maps; None for those of the student's deepest stage (or the
            length of its pooled vector), at most 512.

    Raises:
        InputError: A setting is out of range, or one of the two has no stages.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 5.0, "warmup": 20.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 5.0,
        temperature: Positive = 4.0,
        warmup: Epochs = 0.0,
        width: Count | None = None,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_stages(pair)
        self.targets = at_same_depth(len(student), len(teacher))
        stages = [*zip(student, (teacher[target] for target in self.targets), strict=True)]
        vectors = pair.student_spec.pooled, check_classes(pair).pooled
        if vectors[0] is not None and vectors[1] is not None:
            stages.append((StageSpec(vectors[0], 1, 1, False), StageSpec(vectors[1], 1, 1, False)))
        self.needs = TeacherNeeds(
            logits=True,
            stages=tuple(sorted(set(self.targets))),
            pooled=len(stages) > len(student),
        )
        inner = width or min(512, stages[-1][0].channels)
        deeper = [False, *[True] * (len(stages) - 1)]
        self.fusions = nn.ModuleList(
            Fusion(stage, target, inner, fuses)
            for (stage, target), fuses in zip(reversed(stages), deeper, strict=True)
        )
        self.weight, self.warmup = weight, warmup
        self.uncompiled = RAMPED if warmup else ""

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the fused stages, with its weight in this epoch."""
        maps = [*student.stages]
        targets = [teacher.stages[target] for target in self.targets]
        if student.pooled is not None and teacher.pooled is not None:
            maps.append(student.pooled[:, :, None, None])
            targets.append(teacher.pooled[:, :, None, None])
        compared: list[Tensor] = []
        deeper = None
        for fusion, feature_map in zip(self.fusions, reversed(maps), strict=True):
            adapted, deeper = fusion(feature_map, deeper)
            compared.append(adapted)
        weight = self.weight * ramp(batch.epoch, self.warmup)
        return {"reviewkd": weight * reviewkd_loss(compared, targets[::-1])}
