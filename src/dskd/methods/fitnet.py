"""FitNets: the middle of the student learns from the middle of the teacher."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import check_same_shape
from dskd.losses.feature_maps import pool_to
from dskd.losses.precision import in_full_precision
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import at_same_depth, check_stages
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec
from dskd.settings import Count, Positive, Weight, checked


@in_full_precision
def fitnet_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Hint: ``mean((r(F_s) - F_t)^2)`` over images, channels and positions.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550,
    equation 3. The paper has half of the squared norm. The reference implementations have the mean
    of the squares, and the published weights belong to that.

    Args:
        student_map: ``[B, C, H, W]``, the output of the regressor r for the student's map.
        teacher_map: ``[B, C, H, W]``.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> fitnet_loss(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)).item()
        4.0
    """
    check_same_shape(student_map, teacher_map, "feature maps [B, C, H, W]")
    return (student_map - teacher_map).square().mean()


class FitNet(FeatureMethod):
    """A hint in the middle: ``ce * CE + kd * KD + weight * mean (r(F_s) - F_t)^2``.

    ``r`` is a `Regressor` from the student's map to the teacher's, trained with the student and
    never deployed. Stage ``l`` of the student's L is paired with stage
    ``ceil(l L_t / L)`` of the teacher's L_t.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550,
    equation 3. The paper trains in two phases: first the student up to the hint, by the hint alone;
    then the whole student by classic distillation, without the hint. Here both are trained at once,
    as in CRD's repository, and the weight is that repository's (``literature`` has no KD).

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the hint.
        temperature: T of the predictions.
        stage: Which of the student's stages gets the hint, from 1; None for the middle one,
            ``ceil(L / 2)``.

    Raises:
        InputError: A setting is out of range, or one of the two has no stages.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 100.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 100.0,
        temperature: Positive = 4.0,
        stage: Count | None = None,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_stages(pair)
        if stage is not None and stage > len(student):
            raise InputError(f"stage must be from 1 to {len(student)}, got {stage}")
        self.stage = (stage or math.ceil(len(student) / 2)) - 1
        self.target = at_same_depth(len(student), len(teacher))[self.stage]
        self.needs = TeacherNeeds(logits=True, stages=(self.target,))
        self.weight = weight
        self.regressor = Regressor(student[self.stage], teacher[self.target])

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the hint."""
        regressed = self.regressor(student.stages[self.stage])
        target = pool_to(teacher.stages[self.target], *regressed.shape[2:])
        return {"fitnet": self.weight * fitnet_loss(regressed, target)}


class Regressor(nn.Module):
    """From the student's map to the teacher's: a convolution, BatchNorm, ReLU.

    The convolution is 1x1 for maps of one size, 3x3 with stride 2 if the teacher's map has half the
    student's size, and 4x4 transposed with stride 2 if it has twice the size. *Our choice* for all
    other sizes: the student's map is average-pooled to the teacher's if it is larger, then comes
    the 1x1 convolution; if the teacher's map is still larger, it is pooled too.

    Source: CRD's repository. The paper has a plain convolution without padding, as large as the
    difference in size requires. The ReLU at the end is left out if the teacher's map has negative
    values, which it could not reach: *our choice*.

    Args:
        stage: The student's stage.
        target: The teacher's map, the hint.

    Example:
        >>> regressor = Regressor(StageSpec(16, 32, 32, True), StageSpec(64, 16, 16, True))
        >>> regressor(torch.zeros(2, 16, 32, 32)).shape
        torch.Size([2, 64, 16, 16])
    """

    def __init__(self, stage: StageSpec, target: StageSpec) -> None:
        super().__init__()
        halved = _halved(stage, target)
        self.size = (stage.height, stage.width) if halved else (target.height, target.width)
        channels = stage.channels, target.channels
        conv: nn.Module
        if halved:
            conv = nn.Conv2d(*channels, 3, stride=2, padding=1, bias=False)
        elif (2 * stage.height, 2 * stage.width) == self.size:
            conv = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1, bias=False)
        else:
            conv = nn.Conv2d(*channels, 1, bias=False)
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(target.channels))
        if target.nonnegative:
            self.layers.append(nn.ReLU())
        self.layers.to(memory_format=torch.channels_last)

    def forward(self, feature_map: Tensor) -> Tensor:
        """The student's map ``[B, C_s, H_s, W_s]`` as ``[B, C_t, H, W]``."""
        regressed: Tensor = self.layers(pool_to(feature_map, *self.size))
        return regressed


def _halved(stage: StageSpec, target: StageSpec) -> bool:
    """Whether a convolution with stride 2 turns the stage's size into the target's."""
    smaller = (math.ceil(stage.height / 2), math.ceil(stage.width / 2))
    sizes = (target.height, target.width)
    return sizes == smaller and sizes != (stage.height, stage.width)
