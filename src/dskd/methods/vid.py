"""Variational information distillation: the student's maps predict the teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import check_lists, check_same_shape, check_tensor
from dskd.losses.feature_maps import pooled_alike
from dskd.losses.precision import in_full_precision
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import at_same_depth, check_stages
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked

SMALLEST_VARIANCE = 1e-5
"""The lower bound of a channel's variance."""


@in_full_precision
def vid_loss(
    means: Sequence[Tensor], teacher_maps: Sequence[Tensor], variances: Sequence[Tensor]
) -> Tensor:
    """Variational information: ``sum_l mean(((mu_l - F_t,l)^2 / v_l + log v_l) / 2)``.

    This is the negative log-likelihood of the teacher's map under a Gaussian with a mean for each
    value and a variance for each channel, without the constant ``log(2 pi) / 2``. It can be
    negative.

    Source: Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019,
    arXiv 1904.05835, section 2. The paper sums over channels and positions. The reference
    implementations take the mean, and the published weights belong to that.

    Args:
        means: mu, ``[B, C, H, W]`` per stage, the output of a regressor for the student's map.
        teacher_maps: F_t, in the same shapes.
        variances: v, ``[C]`` per stage, above 0 (their values are not checked).

    Raises:
        InputError: The shapes do not fit.

    Example:
        >>> maps = [torch.ones(2, 3, 4, 4)]
        >>> vid_loss(maps, maps, [torch.ones(3)]).item()
        0.0
    """
    check_lists(means=means, teacher_maps=teacher_maps, variances=variances)
    stages = zip(means, teacher_maps, variances, strict=True)
    terms = [_negative_log_likelihood(*stage) for stage in stages]
    return sum(terms[1:], start=terms[0])


def _negative_log_likelihood(mean: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    check_same_shape(mean, target, "feature maps [B, C, H, W]")
    check_tensor(variance, "variances [C]")
    if variance.shape != mean.shape[1:2]:
        raise InputError(
            f"a variance for each channel [C] of maps [B, C, H, W] is needed, got "
            f"{list(variance.shape)} for {list(mean.shape)}"
        )
    spread = variance[:, None, None]
    return ((mean - target).square() / spread + spread.log()).mean() / 2


class VID(FeatureMethod):
    """Likelihood of every stage: ``ce * CE + kd * KD - weight * sum_l mean log q(F_t,l | F_s,l)``.

    ``q`` is a `ConditionalGaussian` for each stage, trained with the student and never deployed.
    Its likelihood of the teacher's map bounds the information that the two maps share. Stage
    ``l`` of the student's L is paired with stage ``ceil(l L_t / L)`` of the teacher's L_t. Of two
    sizes, the larger map is average-pooled to the smaller.

    Source: Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019,
    arXiv 1904.05835, section 2. The weight is that of CRD's repository, for means instead of sums
    (``literature`` has no KD). The variances are learned, as in the paper and CRD's repository; in
    mdistiller they stay constant.

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the likelihood.
        temperature: T of the predictions.
        variance: Initial variance of every channel, above 0.00001.

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
        """The negative log-likelihood of the teacher's maps, given the student's."""
        pairs = [
            pooled_alike(stage, teacher.stages[target])
            for stage, target in zip(student.stages, self.targets, strict=True)
        ]
        conditions = [
            gaussian(stage) for gaussian, (stage, _) in zip(self.gaussians, pairs, strict=True)
        ]
        means, variances = zip(*conditions, strict=True)
        return {"vid": self.weight * vid_loss(means, [target for _, target in pairs], variances)}


class ConditionalGaussian(nn.Module):
    """A Gaussian over the teacher's map given the student's, with a mean for each value.

    Three 1x1 convolutions with ReLU between them, as wide as the teacher's map, compute the mean.
    The variance of each channel is ``softplus(scale) + 0.00001``. It is learned, and the same for
    all images and positions.

    Source: Ahn et al., CVPR 2019, section 2, in the form of CRD's repository (from the authors'
    code).

    Args:
        channels: Channels of the student's map.
        targets: Channels of the teacher's map.
        variance: Initial variance of every channel.

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
