"""Variational information distillation: the student's maps predict the teacher's."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.feature_maps import pooled_alike, vid
from dskd.methods.base import FeatureMethod, Pair, TeacherNeeds, at_same_depth, check_stages
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked

SMALLEST_VARIANCE = 1e-5
"""Below which no channel's variance falls."""


class VID(FeatureMethod):
    """Likely maps of every stage: ``ce * CE + kd * KD - weight * sum_l mean log q(F_t,l | F_s,l)``.

    ``q`` is a `ConditionalGaussian` for each stage, trained beside the student and never deployed;
    how likely it finds the teacher's map bounds the information that the two maps share. Each of
    the student's stages is paired with the teacher's at the same relative depth; of two sizes, the
    larger map is average-pooled to the smaller.

    Source: Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019,
    arXiv 1904.05835, section 2. The weight is the one that the field takes for means in place of
    sums (CRD's repository; ``literature`` has no KD). The variances learn here, as in the paper and
    CRD's repository; mdistiller's stay as they begin.

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the likelihood.
        temperature: T of the predictions.
        variance: Of every channel in the beginning, above 0.00001.

    Raises:
        InputError: A setting is out of range, or one of the two has no stages.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 1.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 1.0,
        temperature: Positive = 4.0,
        variance: Positive = 5.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_stages(pair)
        if variance <= SMALLEST_VARIANCE:
            raise InputError(f"variance must be above {SMALLEST_VARIANCE:f}, got {variance}")
        self.targets = at_same_depth(len(student), len(teacher))
        self.needs = TeacherNeeds(logits=True, stages=tuple(sorted(set(self.targets))))
        self.weight = weight
        self.gaussians = nn.ModuleList(
            ConditionalGaussian(stage.channels, teacher[target].channels, variance)
            for stage, target in zip(student, self.targets, strict=True)
        )

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """How unlikely the teacher's maps are, given the student's."""
        pairs = [
            pooled_alike(stage, teacher.stages[target])
            for stage, target in zip(student.stages, self.targets, strict=True)
        ]
        conditions = [
            gaussian(stage) for gaussian, (stage, _) in zip(self.gaussians, pairs, strict=True)
        ]
        means, variances = zip(*conditions, strict=True)
        return {"vid": self.weight * vid(means, [target for _, target in pairs], variances)}


class ConditionalGaussian(nn.Module):
    """A Gaussian over the teacher's map, given the student's: a mean for each value of it.

    The mean is three 1x1 convolutions with ReLU between, as wide as the teacher's map; the
    variance ``softplus(scale) + 0.00001`` of each channel is learned and the same for all images
    and positions.

    Source: Ahn et al., CVPR 2019, section 2, in the form of the field (CRD's repository, from the
    authors' code).

    Args:
        channels: Of the student's map.
        targets: Channels of the teacher's map.
        variance: Of every channel in the beginning.

    Example:
        >>> gaussian = ConditionalGaussian(16, 32, variance=5.0)
        >>> mean, variance = gaussian(torch.zeros(2, 16, 8, 8))
        >>> mean.shape, round(variance[0].item(), 4)
        (torch.Size([2, 32, 8, 8]), 5.0)
    """

    def __init__(self, channels: int, targets: int, variance: float) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(channels, targets, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(targets, targets, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(targets, targets, 1, bias=False),
        )
        softplus = variance - SMALLEST_VARIANCE
        inverse = softplus + math.log(-math.expm1(-softplus))
        self.scale = nn.Parameter(torch.full((targets,), inverse))

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[B, C_t, H, W]`` and variance ``[C_t]``, from the map ``[B, C_s, H, W]``."""
        return self.regressor(feature_map), F.softplus(self.scale) + SMALLEST_VARIANCE
