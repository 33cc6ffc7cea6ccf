"""N-to-one representation matching: many copies of the student's map match one of the teacher's."""

from __future__ import annotations

import copy
import math
from itertools import chain
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import check_same_batch
from dskd.losses.feature_maps import pool_to
from dskd.losses.precision import in_full_precision
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_classes, check_standardized, how_to_name
from dskd.methods.contracts import Pair, StepOutput, TeacherNeeds, require_outputs
from dskd.models.feature_maps import spatial_mean
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec
from dskd.settings import Count, Positive, Weight, checked

Schedule = Literal["constant", "cifar100", "imagenet"]
"""How the weight of the maps changes over the epochs."""
SHARES: dict[Schedule, tuple[tuple[float, float], ...]] = {
    "constant": ((math.inf, 1.0),),
    "cifar100": ((10, 0.1), (20, 0.5), (180, 1.0), (210, 0.5), (math.inf, 0.1)),
    "imagenet": ((5, 0.1), (15, 0.5), (60, 0.9), (80, 0.5), (math.inf, 0.1)),
}
"""The epoch before which the weight has this share of itself."""

DROPOUT = (
    "norm does not use the student's dropout before its classifier, since its transform stands "
    "there; take another method to train with it"
)


@in_full_precision
def norm_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """N-to-one matching: ``sum_n mean((S_n - F_t)^2)`` over images, channels and positions.

    ``S_1`` to ``S_N`` are the segments of the student's widened map (`Transform`), each with as
    many channels as the teacher's map. Of two maps of different sizes, the larger is max-pooled.

    Source: Liu, Li, Li, Yao, NORM: Knowledge Distillation via N-to-One Representation Matching,
    ICLR 2023, arXiv 2305.13803, in the form of the authors' code. *Our choice*: if the sides of the
    maps do not divide, the larger map is average-pooled (`dskd.losses.feature_maps.pool_to`).

    Args:
        student_map: ``[B, N C, H, W]``.
        teacher_map: F_t, ``[B, C, H', W']``.

    Raises:
        InputError: The maps are not of the same images, or the student's channels are not a
            multiple of the teacher's.

    Example:
        >>> teacher = torch.ones(2, 3, 4, 4)
        >>> norm_loss(torch.zeros(2, 4 * 3, 4, 4), teacher).item()
        4.0
    """
    check_same_batch(student_map, teacher_map, 4, "feature maps [B, C, H, W]")
    channels = teacher_map.shape[1]
    segments = student_map.shape[1] // channels
    if segments * channels != student_map.shape[1]:
        raise InputError(
            "the student's map needs a multiple of the teacher's channels, got "
            f"{student_map.shape[1]} of the student, {channels} of the teacher"
        )
    sizes = student_map.shape[2:], teacher_map.shape[2:]
    student, teacher = _pooled(student_map, *sizes[1]), _pooled(teacher_map, *sizes[0])
    split = student.reshape(len(student), segments, *teacher.shape[1:])
    return segments * (split - teacher[:, None]).square().mean()


class NORM(FeatureMethod):
    """Many segments match one map: ``ce * CE + kd * KD + weight * sum_n mean (S_n - F_t)^2``.

    A transform of two linear layers follows the student's last map (`Transform`). The first widens
    it to N times the teacher's channels; its output splits into N segments, and each should equal
    the teacher's last map. The second brings it back to the student's channels, for the classifier.
    See `dskd.losses.norm`.

    The transform is linear, so that it is merged into the classifier: **the deployed student is the
    plain one**, with another classifier. Evaluation uses the merged classifier too.

    Source: Liu, Li, Li, Yao, NORM: Knowledge Distillation via N-to-One Representation Matching,
    ICLR 2023, arXiv 2305.13803. Of the paper the abstract alone was at hand. BatchNorm after both
    layers, and the student's map that is added to the output, are from the authors' code.
    ``literature`` has their weights for resnet32x4-resnet8x4. Their code also normalises the logits
    before CE and KD, and changes the weight of the maps in steps over 240 epochs; their README
    mentions neither. Both are options, and the preset ``code`` has them.

    *Our choice*: both maps are those whose average the classifiers see, after the last activation.
    The authors take those of WRNs before the last BatchNorm, where the transform could not be
    merged. A dropout before the student's classifier is not used, and a line in the log says so.
    With one segment their code has no transform; here it stays, since channels may differ.

    Args:
        pair: Student and teacher, of the same classes. The student averages its last map and ends
            in a linear layer with a bias; the teacher has a map.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the maps.
        temperature: T of the predictions.
        segments: N, the number of segments.
        logit_scale: Before CE and KD, the logits of each image, of student and teacher, get mean 0
            and this standard deviation over the classes, 2.5 in the authors' code; None for the
            logits themselves. This needs three classes or more.
        schedule: ``constant``, or the steps of the authors' code for ``cifar100`` (240 epochs) or
            ``imagenet`` (100 epochs), which change the weight of the maps.

    Raises:
        InputError: A setting is out of range, the teacher has no map, or the student does not
            average its last map for a linear layer with a bias.
    """

    needs = TeacherNeeds(logits=True, last=True)
    presets: ClassVar = {
        "literature": {"ce": 0.1, "kd": 0.0, "weight": 1.0, "segments": 8},
        "code": {
            "ce": 0.1,
            "kd": 0.0,
            "weight": 1.0,
            "segments": 8,
            "logit_scale": 2.5,
            "schedule": "cifar100",
        },
    }

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 1.0,
        temperature: Positive = 4.0,
        segments: Count = 8,
        logit_scale: Positive | None = None,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        channels = _channels(pair)
        if logit_scale is not None:
            check_standardized(pair, f"method.logit_scale={logit_scale:g}", "drop it")
        self.weight, self.logit_scale, self.schedule = weight, logit_scale, schedule
        if schedule != "constant":
            self.uncompiled = (
                "method.schedule changes a weight in some epochs, and torch would compile each anew"
            )
        self.transform = Transform(*channels, segments)
        self.warnings = (DROPOUT,) * self.drops_pooled

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of labels and predictions behind the transform, and of the maps."""
        taught = require_outputs(teacher)
        student: ModelOutput = self.student(batch.images)
        assert student.last is not None, "the constructor checks this"
        assert taught.last is not None, "the constructor checks this"
        transformed, widened = self.transform(student.last)
        logits = self._classifier()(spatial_mean(transformed))
        compared = logits, taught.logits
        if self.logit_scale is not None:
            compared = (
                normalized_logits(logits, self.logit_scale),
                normalized_logits(taught.logits, self.logit_scale),
            )
        losses = self.distillation_losses(batch, *compared)
        share = share_in_epoch(self.schedule, batch.epoch)
        losses["norm"] = share * self.weight * norm_loss(widened, taught.last)
        return StepOutput(losses, logits)

    def classifier_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The logits of the merged classifier."""
        return {"student": self._merged()(self.student(images).pooled)}

    def deployed(self) -> nn.Module:
        """A copy of the plain student, with the transform merged into its classifier."""
        return copy.deepcopy(self.deployed_view())

    def deployed_view(self) -> nn.Module:
        """The plain student with another classifier; it shares all other weights."""
        merged = self._merged()
        assert self.student.classifier is not None, "the constructor checks this"
        own = {id(value) for value in self._classifier().parameters()}
        tensors = chain(self.student.module.parameters(), self.student.module.buffers())
        shared = {id(value): value for value in tensors if id(value) not in own}
        module = copy.deepcopy(self.student.module, shared)
        module.get_submodule(self.student.classifier).load_state_dict(merged.state_dict())
        return module

    def _classifier(self) -> nn.Linear:
        classifier = self.student.linear_classifier
        assert classifier is not None, "the constructor checks this"
        return classifier

    @torch.no_grad()
    def _merged(self) -> nn.Linear:
        """The classifier behind the transform, as one linear layer."""
        classifier = self._classifier()
        merged = copy.deepcopy(classifier)
        weight = classifier.weight.double()
        product, offset = self.transform.merged_into(weight)
        merged.weight.copy_(weight + product)
        merged.bias.copy_(classifier.bias.double() + offset)
        return merged


class Transform(nn.Module):
    """Widens a map to segments and narrows it again: ``B(V A(U x)) + x``.

    U and V are 1x1 convolutions without bias; A and B are BatchNorm layers. There is no activation,
    so that in evaluation mode the transform is linear.

    Args:
        channels: The student's.
        target: The teacher's.
        segments: N; A(U x) has N times the teacher's channels.

    Example:
        >>> transformed, widened = Transform(16, 64, 8)(torch.zeros(2, 16, 4, 4))
        >>> transformed.shape, widened.shape
        (torch.Size([2, 16, 4, 4]), torch.Size([2, 512, 4, 4]))
    """

    def __init__(self, channels: int, target: int, segments: int) -> None:
        super().__init__()
        wide = segments * target
        self.widen = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide))
        self.narrow = nn.Sequential(
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed map ``[B, C_s, H, W]`` and the widened ``[B, N C_t, H, W]``."""
        widened = self.widen(feature_map)
        return self.narrow(widened) + feature_map, widened

    def merged_into(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A linear layer's change of weight and bias if it takes on the transform.

        Args:
            weight: Of the layer, float64 ``[K, C_s]``.

        Returns:
            What the weight and the bias ``[K]`` gain.
        """
        gained = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        for layers in (self.narrow, self.widen):  # from the layer back to the student's map
            conv, batch_norm = layers
            assert isinstance(conv, nn.Conv2d)
            scale, shift = _affine(batch_norm)
            gained = gained + weight @ shift
            weight = (weight * scale) @ conv.weight.flatten(1).double()
        return weight, gained


@in_full_precision
def normalized_logits(logits: Tensor, scale: float) -> Tensor:
    """The logits of each image with mean 0 and this standard deviation (over the K classes).

    Example:
        >>> normalized_logits(torch.tensor([[1.0, 3.0]]), 2.5)
        tensor([[-2.5000,  2.5000]])
    """
    return scale * F.layer_norm(logits, logits.shape[1:], eps=1e-7)


def share_in_epoch(schedule: Schedule, epoch: int) -> float:
    """The share of its weight that the loss of the maps has in an epoch, from 0.

    Example:
        >>> [share_in_epoch("cifar100", epoch) for epoch in (9, 10, 20, 180, 210)]
        [0.1, 0.5, 1.0, 0.5, 0.1]
    """
    return next(share for end, share in SHARES[schedule] if epoch < end)


def _affine(batch_norm: nn.Module) -> tuple[Tensor, Tensor]:
    """BatchNorm in evaluation mode as factor and summand of each channel, in float64."""
    assert isinstance(batch_norm, _BatchNorm)  # also one that train.sync_batchnorm converted
    assert batch_norm.running_var is not None
    assert batch_norm.running_mean is not None
    deviation = (batch_norm.running_var.double() + batch_norm.eps).sqrt()
    scale = batch_norm.weight.double() / deviation
    return scale, batch_norm.bias.double() - scale * batch_norm.running_mean.double()


def _pooled(feature_map: Tensor, height: int, width: int) -> Tensor:
    """The map max-pooled to this size; a smaller side stays as it is."""
    h, w = feature_map.shape[2:]
    height, width = min(h, height), min(w, width)
    if (h, w) == (height, width):
        return feature_map
    if h % height or w % width:
        return pool_to(feature_map, height, width)
    return F.max_pool2d(feature_map, (h // height, w // width))


def _channels(pair: Pair) -> tuple[int, int]:
    """The channels of the last maps of student and teacher."""
    student, teacher = pair.student_spec, check_classes(pair)
    classifier = pair.student.linear_classifier
    if not _merges(student) or classifier is None or classifier.bias is None:
        raise InputError(
            "norm merges its transform into the student's classifier, and the student's logits are "
            "not those of a linear layer with a bias on the average of its last map; take another "
            "method"
        )
    if teacher.last is None:
        raise InputError(
            "norm compares with the teacher's last map, and the teacher has none; name it with "
            f"{how_to_name('teacher', teacher)}"
        )
    assert student.last is not None, "checked above"
    return student.last.channels, teacher.last.channels


def _merges(student: ModelSpec) -> bool:
    return student.last is not None and student.average_pooled and student.linear_logits
