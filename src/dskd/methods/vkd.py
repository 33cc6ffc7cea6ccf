"""Orthogonal projections: the student's features reach the teacher's without any distortion."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import check_choice, check_same_shape
from dskd.losses.precision import full_precision, in_full_precision
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_classes, how_to_name
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.feature_maps import spatial_mean
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec
from dskd.settings import Positive, Weight, checked

Normalization = Literal["standardize", "layer"]
"""How features are normalised before they are compared."""
LEAST_VARIANCE = 1e-8
"""Is added to variances, so that a feature that is equal for all images has a small gradient."""


@in_full_precision
def vkd_loss(
    student: Tensor, teacher: Tensor, normalization: Normalization = "standardize"
) -> Tensor:
    """VkD: ``smooth_l1(N(W h_s), N(h_t))``, the mean over images and features.

    ``W h_s`` are the student's features after an orthogonal projection (`OrthogonalProjector`). The
    smooth L1 distance of a difference d is ``d^2 / 2``, and ``|d| - 1/2`` where ``|d| > 1``.

    Source: Miles, Elezi, Deng, VkD: Improving Knowledge Distillation using Orthogonal Projections,
    CVPR 2024, arXiv 2403.06213. Its normalisation depends on the task. ``standardize`` gives every
    feature of both sides mean 0 and standard deviation 1 over the batch, as the authors' code for
    detection does. ``layer`` is their code for classification: a layer norm of the teacher's
    features, without scale and shift, and none of the student's. A feature that is equal for all
    images is 0 after ``standardize`` (a constant of 1e-8 in its variance is *our choice*).

    Args:
        student: W h_s, ``[B, D]``.
        teacher: h_t, ``[B, D]``.
        normalization: ``standardize`` or ``layer``.

    Raises:
        InputError: The shapes differ, or ``normalization`` does not exist.

    Example:
        >>> features = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> vkd_loss(10 * features + 1, features).item()
        0.0
    """
    check_choice("normalization", normalization, get_args(Normalization))
    check_same_shape(student, teacher, "features [B, D]")
    if normalization == "layer":
        return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[1:]))
    return F.smooth_l1_loss(_standardized(student), _standardized(teacher))


class VKD(FeatureMethod):
    """An orthogonal projection: ``ce * CE + kd * KD + weight * smooth_l1(N(W h_s), N(h_t))``.

    ``h`` is a model's pooled vector: the average of its last map over the positions. ``W`` is a
    projection with orthonormal columns. It preserves the lengths and angles of the student's
    vectors, so it cannot fit the teacher in place of the student. It is trained with the student
    and never deployed. N normalises the features. See `dskd.losses.vkd`.

    For a vision transformer, name its last norm or block as the last stage: h is then the average
    of its patch tokens, without the class token. A model without stages has the vector before its
    classifier as h: *our choice*.

    Source: Miles, Elezi, Deng, VkD: Improving Knowledge Distillation using Orthogonal Projections,
    CVPR 2024, arXiv 2403.06213. The weights are those of the authors' code for ImageNet, the only
    classification code that they published: ``literature`` has them with standardised features, the
    preset ``code`` with the code's layer norm. We did not have the paper's full text, so we could
    not check whether the paper standardises features for classification. The authors' code for
    detection standardises both sides, and we follow it. There the projection also has a scale and a
    shift, which the standardisation takes away again.

    Their student has a second classifier, on a distillation token, for KD. Here its only classifier
    learns from labels and teacher. A student with more features than the teacher gets orthonormal
    rows. Both are *our choice*.

    Args:
        pair: Student and teacher, of the same classes. Each has a last map or ends in a linear
            layer.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the features.
        temperature: T of the predictions.
        normalization: ``standardize``: every feature of both sides, over the batch. ``layer``: the
            features of each image, of the teacher alone.

    Raises:
        InputError: A setting is out of range, or one of the two has no features.
    """

    presets: ClassVar = {
        "literature": {"ce": 1.0, "kd": 1.0, "weight": 1.0, "temperature": 1.0},
        "code": {
            "ce": 1.0,
            "kd": 1.0,
            "weight": 1.0,
            "temperature": 1.0,
            "normalization": "layer",
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
        normalization: Normalization = "standardize",
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = pair.student_spec, check_classes(pair)
        widths = _width(student, "student"), _width(teacher, "teacher")
        self.averages = _averages(student), _averages(teacher)
        self.needs = TeacherNeeds(logits=True, last=self.averages[1], pooled=not self.averages[1])
        self.projector = OrthogonalProjector(*widths)
        self.weight, self.normalization = weight, normalization

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the features."""
        own, taught = (
            _features(output, averages)
            for output, averages in zip((student, teacher), self.averages, strict=True)
        )
        return {"vkd": self.weight * vkd_loss(self.projector(own), taught, self.normalization)}


class OrthogonalProjector(nn.Module):
    """A linear layer without bias whose weight has orthonormal columns, or rows if it narrows.

    The weight is a product of Householder reflections, computed in every step from a free parameter
    and never in half precision. Its signs are constants. torch's `orthogonal`, which the authors
    use, reads them from the free parameter: the first step with weight decay makes its weight zero.

    Args:
        features: The student's.
        target: The teacher's.

    Example:
        >>> weight = OrthogonalProjector(3, 5).weight
        >>> torch.allclose(weight.T @ weight, torch.eye(3), atol=1e-5)
        True
    """

    def __init__(self, features: int, target: int) -> None:
        super().__init__()
        self.narrows = target < features
        tall = max(features, target), min(features, target)
        factors, _ = torch.geqrf(torch.randn(tall))
        self.reflections = nn.Parameter(factors.tril(-1))
        self.signs: Tensor
        self.register_buffer("signs", torch.where(factors.diagonal() < 0, -1.0, 1.0))

    @property
    def weight(self) -> Tensor:
        """W, ``[D_t, D_s]``."""
        below = self.reflections.tril(-1)
        scales = 2 / (1 + below.square().sum(0))
        columns: Tensor = torch.linalg.householder_product(below, scales) * self.signs
        return columns.T if self.narrows else columns

    def forward(self, vectors: Tensor) -> Tensor:
        """``W z``, ``[B, D_t]``, from ``[B, D_s]``."""
        with torch.autocast(vectors.device.type, enabled=False):
            return F.linear(full_precision(vectors), self.weight)


def _averages(spec: ModelSpec) -> bool:
    """Whether the features must be averaged, since they are not the pooled vector."""
    return spec.last is not None and not spec.average_pooled


def _features(output: ModelOutput, averages: bool) -> Tensor:
    """z, ``[B, D]``."""
    if averages:
        assert output.last is not None, "the constructor checks this"
        return spatial_mean(full_precision(output.last))
    assert output.pooled is not None, "the constructor checks this"
    return output.pooled


def _width(spec: ModelSpec, what: str) -> int:
    """The length of z."""
    if spec.last is not None:
        return spec.last.channels
    if spec.pooled is None:
        raise InputError(
            f"vkd compares the average of the last map, and the {what} has none; name it with "
            f"{how_to_name(what, spec)}"
        )
    return spec.pooled


def _standardized(vectors: Tensor) -> Tensor:
    """``[B, D]`` with mean 0 and standard deviation 1 of every feature over the batch."""
    deviations = vectors - vectors.mean(0)
    variance = deviations.square().sum(0) / max(len(vectors) - 1, 1)
    return deviations / (variance + LEAST_VARIANCE).sqrt()
