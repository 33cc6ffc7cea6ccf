"""Class attention transfer: where in the image the classifier finds each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import (
    check_flag,
    check_number,
    check_same_batch,
    check_same_channels,
)
from dskd.losses.feature_maps import pool_to
from dskd.losses.precision import in_full_precision
from dskd.losses.vectors import unit
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_classes, check_classifier, positions_of
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec
from dskd.settings import Count, Positive, Weight, checked


@in_full_precision
def catkd_loss(
    student_maps: Tensor, teacher_maps: Tensor, size: int = 2, normalize: bool = True
) -> Tensor:
    """Class attention transfer: ``mean((a_s - a_t)^2)`` over images, classes and cells.

    ``a`` is the class activation map of one class, averaged over ``size x size`` cells and scaled
    to length 1. A map of zeros stays zero.

    Source: Guo, Yan, Li, Lin, Class Attention Transfer Based Knowledge Distillation, CVPR 2023,
    arXiv 2304.12777. The paper's maps have length 1. The authors' recipes switch this off for
    models of similar architecture (``normalize=False``).

    If the sides of a map do not divide, the authors' adaptive pooling lets cells overlap. Here they
    never do: *our choice* (`dskd.losses.feature_maps.pool_to`).

    Args:
        student_maps: A map for each class, ``[B, K, H, W]`` (`class_maps`).
        teacher_maps: ``[B, K, H', W']``.
        size: Cells on each side, 1 or more; a smaller map decides about both.
        normalize: Whether each map is scaled to length 1.

    Raises:
        InputError: The maps are not of the same images and classes, the size is below 1, or
            ``normalize`` is not true or false.

    Example:
        >>> import torch
        >>> maps = torch.rand(2, 10, 4, 4)
        >>> round(catkd_loss(maps, 3 * maps).item(), 6)
        0.0
    """
    check_number("size", size, least=1)
    check_flag("normalize", normalize)
    check_same_batch(student_maps, teacher_maps, 4, "maps of the classes [B, K, H, W]")
    check_same_channels(student_maps, teacher_maps)
    height, width = (
        min(int(size), one, other)
        for one, other in zip(student_maps.shape[2:], teacher_maps.shape[2:], strict=True)
    )
    student, teacher = (
        pool_to(maps, height, width).flatten(2) for maps in (student_maps, teacher_maps)
    )
    if normalize:
        student, teacher = unit(student), unit(teacher)
    return (student - teacher).square().mean()


def class_maps(feature_map: Tensor, classifier: nn.Linear) -> Tensor:
    """The class activation maps of a classifier: its weights at each position, without the bias.

    Their average over the positions is the logits without the bias.

    Args:
        feature_map: ``[B, D, H, W]``.
        classifier: From D features to K classes.

    Returns:
        ``[B, K, H, W]``.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1)
        >>> _ = nn.init.ones_(layer.weight)
        >>> class_maps(torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]), layer).tolist()
        [[[[4.0, 6.0]]]]
    """
    return F.conv2d(feature_map, classifier.weight[:, :, None, None])


class CATKD(FeatureMethod):
    """Where each class is seen: ``ce * CE + kd * KD + weight * mean (a_s - a_t)^2``.

    ``a`` is a class activation map: the model's own classifier, without its bias, applied to each
    position of its last map. Both maps are averaged over a few cells and scaled to length 1. See
    `dskd.losses.catkd`. Nothing is added to the student.

    Source: Guo, Yan, Li, Lin, Class Attention Transfer Based Knowledge Distillation, CVPR 2023,
    arXiv 2304.12777. The default weight is that of the authors' code. ``literature`` has its values
    for resnet32x4-resnet8x4; there and for the other pairs of similar architecture the maps are not
    scaled (weights from 0.7 to 15). For different architectures they are (weights from 15 to 600).
    All these weights were published for 100 classes (CIFAR-100). With another number of classes,
    tune the weight.

    The authors replace the classifier by a 1x1 convolution without a bias, also in the teacher,
    whose predictions change by that. Here both models keep their bias in their logits: *our
    choice*.

    Args:
        pair: Student and teacher, of the same classes. Both average their last map and end in a
            linear layer.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the class activation maps, the beta of the paper.
        temperature: T of the predictions.
        size: Cells on each side of a map; the maps themselves if they are smaller.
        normalize: Whether the map of each class is scaled to length 1. This needs two cells or
            more, as a single one keeps nothing but its sign.

    Raises:
        InputError: A setting is out of range, maps of a single cell would be scaled to length 1,
            or one of the two does not average its last map or does not end in a linear layer.
    """

    needs = TeacherNeeds(logits=True, last=True)
    presets: ClassVar = {
        "literature": {"ce": 1.0, "kd": 0.0, "weight": 15.0, "normalize": False},
    }

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 400.0,
        temperature: Positive = 4.0,
        size: Count = 2,
        normalize: bool = True,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        self.classifier = check_classifier(pair)
        for what, spec in (("student", pair.student_spec), ("teacher", check_classes(pair))):
            _check_maps(spec, what)
        if weight and normalize:
            _check_cells(pair, size)
        self.weight, self.size, self.normalize = weight, size, normalize

    @classmethod
    def reads_classes(cls, settings: Mapping[str, Any]) -> bool:
        """Always: there is a map for each class."""
        return True

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the class activation maps."""
        own, taught = student.last, teacher.last
        own_classifier = self.student.linear_classifier
        assert own is not None, "the constructor checks this"
        assert taught is not None, "the constructor checks this"
        assert own_classifier is not None, "the constructor checks this"
        # Pooling and classifier are both linear: this order applies it to fewer positions.
        side = self.size
        maps = (
            class_maps(pool_to(own, side, side), own_classifier),
            class_maps(pool_to(taught, side, side), self.classifier),
        )
        return {"catkd": self.weight * catkd_loss(*maps, side, self.normalize)}


def _check_maps(spec: ModelSpec, what: str) -> None:
    """Refuses a model whose logits are not a linear layer's on the average of its last map."""
    if spec.last is None or not spec.average_pooled or not spec.linear_logits:
        raise InputError(
            f"catkd applies the {what}'s classifier to each position of its last map, and the "
            f"{what}'s logits are not those of a linear layer on the average of that map; take "
            "another method"
        )


def _check_cells(pair: Pair, size: int) -> None:
    """Refuses maps of a single cell, whose scaled value is 1 or -1 and has no gradient."""
    student, teacher = pair.student_spec.last, check_classes(pair).last
    assert student is not None, "checked before"
    assert teacher is not None, "checked before"
    single = positions_of(student, teacher) == 1
    if single or size == 1:
        why = "the smaller last map has" if single else "method.size=1 leaves"
        fix = "method.normalize=false" if single else "method.size=2"
        raise InputError(
            f"catkd compares where each class is seen, and {why} a single position, whose scaled "
            f"value teaches nothing; set {fix}, or take another method"
        )
