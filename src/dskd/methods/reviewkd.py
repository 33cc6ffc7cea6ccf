"""Knowledge review: the student's deeper stages help its shallower ones to meet the teacher's."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.losses.fusion import reviewkd
from dskd.methods.base import (
    RAMPED,
    FeatureMethod,
    Pair,
    TeacherNeeds,
    at_same_depth,
    check_classes,
    check_stages,
    ramp,
)
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec
from dskd.settings import Count, Epochs, Positive, Weight, checked


class ReviewKD(FeatureMethod):
    """Fused stages, deepest first: ``ce * CE + kd * KD + weight * HCL(fused F_s,l, F_t,l)``.

    From the deepest stage up, each of the student's maps is fused with what came from below it
    (`Fusion`), and the result is compared with the teacher's map at several resolutions, see
    `dskd.losses.reviewkd`. Each of the student's stages is paired with the teacher's at the same
    relative depth; below them all, the pooled vector counts as a stage of one position where both
    models have one.

    Source: Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021,
    arXiv 2104.09044, its attention based fusion (ABF) and hierarchical context loss (HCL). The
    published runs take the teacher's maps before their last ReLU; here they are the stages that
    the model gives, which in the zoo are behind it except for wrn and MobileNetV2. The authors'
    scripts have another weight for each pair: 5 for resnet32x4-resnet8x4, resnet32x4-ShuffleV1 and
    wrn_40_2 with each of its students, 8 for resnet32x4-ShuffleV2, 1 for resnet110-resnet32, 0.6
    for resnet56-resnet20; it rises over 20 of 240 epochs: ``warmup``, of which ``literature`` takes
    20 and the default none, so that short runs learn from it at all. (They begin at 0; here, as in
    mdistiller, the first epoch has a share already.)

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the fused stages.
        temperature: T of the predictions.
        warmup: Epochs over which the fused stages rise to their weight.
        width: Channels of the fusion; None for those of the student's deepest stage (or its pooled
            vector's length), at most 512.

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
        """The fused stages' loss."""
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
        return {"reviewkd": weight * reviewkd(compared, targets[::-1])}


class Fusion(nn.Module):
    """Attention based fusion (ABF) of a stage with what came from below it.

    The stage's map goes through a 1x1 convolution with BatchNorm. Two attention maps, made of it
    and of what came from below, say at each position how much of either is taken. The sum, at the
    size of the teacher's map, goes up to the next stage, and through a 3x3 convolution with
    BatchNorm to the teacher's channels. Sizes are changed by taking the nearest value.

    Source: Chen et al., CVPR 2021 (see `ReviewKD`), in the form of its authors' code.

    Args:
        stage: The student's stage.
        target: The teacher's map that it is compared with.
        width: Channels of the fused map.
        fuses: Whether anything comes from below.

    Example:
        >>> fusion = Fusion(StageSpec(16, 8, 8, True), StageSpec(32, 4, 4, True), 24, fuses=True)
        >>> adapted, fused = fusion(torch.zeros(2, 16, 8, 8), torch.zeros(2, 24, 1, 1))
        >>> adapted.shape, fused.shape
        (torch.Size([2, 32, 4, 4]), torch.Size([2, 24, 4, 4]))
    """

    def __init__(self, stage: StageSpec, target: StageSpec, width: int, fuses: bool) -> None:
        super().__init__()
        self.size = (target.height, target.width)
        self.enter = _conv_bn(stage.channels, width, 1)
        self.leave = _conv_bn(width, target.channels, 3)
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None
        self.to(memory_format=torch.channels_last)

    def forward(self, feature_map: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map for the teacher's, ``[B, C_t, H_t, W_t]``, and the one that goes up.

        Args:
            feature_map: The stage's, ``[B, C_s, H_s, W_s]``.
            deeper: What came from below, ``[B, width, H, W]``; None for the deepest stage.
        """
        fused = self.enter(feature_map)
        if self.attention is not None and deeper is not None:
            deeper = _resized(deeper, *fused.shape[2:])
            shares = torch.sigmoid(self.attention(torch.cat([fused, deeper], dim=1)))
            fused = fused * shares[:, :1] + deeper * shares[:, 1:]
        fused = _resized(fused, *self.size)
        return self.leave(fused), fused


def _conv_bn(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


def _resized(feature_map: Tensor, height: int, width: int) -> Tensor:
    if feature_map.shape[2:] == (height, width):
        return feature_map
    return F.interpolate(feature_map, (height, width), mode="nearest")
