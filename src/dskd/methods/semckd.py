"""Semantic calibration: attention decides which teacher stages a student stage learns from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import (
    check_images,
    check_lists,
    check_same_batch,
    check_temperature,
    check_tensor,
    described,
)
from dskd.losses.feature_maps import comparable, pool_to
from dskd.losses.precision import in_full_precision, outside_float16
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_stages
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec
from dskd.settings import Positive, Weight, checked


@in_full_precision
def semckd_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], attention: Tensor
) -> Tensor:
    """Semantic calibration: ``1 / (B S) sum_b,i,j a_b,i,j mean((P_ij(F_i) - G_j)^2)``.

    Each of the student's S stages learns from each of the teacher's T stages; the attention gives
    the weight of each pair for each image.

    Source: Chen et al., Cross-Layer Distillation with Semantic Calibration, AAAI 2021,
    arXiv 2012.03236. The mean over a map's elements and the division by S are those of the
    authors' code, and the published weight belongs to them.

    Args:
        student_maps: ``S T`` maps ``[B, C_j, H, W]``: the student's first stage projected for each
            of the teacher's, then its second, and so on.
        teacher_maps: The teacher's map for each of them; of two sizes, the larger map is
            average-pooled to the smaller.
        attention: ``[B, S, T]``, see `layer_attention`.

    Raises:
        InputError: Two maps are not of the same images and channels, the lists differ in length,
            or the attention has another shape.

    Example:
        >>> maps = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 2, 2)]
        >>> others = [torch.ones(2, 3, 4, 4), 2 * torch.ones(2, 5, 2, 2)]
        >>> semckd_loss(maps, others, torch.full((2, 1, 2), 0.5)).item()
        2.5
    """
    check_lists(student_maps=student_maps, teacher_maps=teacher_maps)
    check_tensor(attention, "weights of attention [B, S, T]")
    pairs = [comparable(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]
    for student, _ in pairs:
        check_images(student, len(attention), "feature maps [B, C, H, W]")
    distances = torch.stack([(s - t).square().flatten(1).mean(1) for s, t in pairs], dim=1)
    if attention.flatten(1).shape != distances.shape:
        raise InputError(
            f"attention [B, S, T] for {distances.shape[1]} pairs of stages and "
            f"{len(distances)} images is needed, got {described(attention)}"
        )
    return (attention.flatten(1) * distances).sum() / attention.shape[:2].numel()


@in_full_precision
def layer_attention(queries: Tensor, keys: Tensor, softness: float = 1.0) -> Tensor:
    """The weight of each teacher stage for each student stage: ``softmax(q . k / tau)``.

    Queries and keys are scaled to unit length first.

    Source: Chen et al., AAAI 2021 (see `semckd_loss`).

    Args:
        queries: ``[B, S, D]``, of the student's stages.
        keys: ``[B, T, D]``, of the teacher's stages.
        softness: tau, above 0.

    Returns:
        ``[B, S, T]``; the sum over the teacher's stages is 1.

    Raises:
        InputError: ``softness`` is not above 0, or the shapes do not fit.

    Example:
        >>> layer_attention(torch.zeros(1, 1, 2), torch.ones(1, 2, 2)).tolist()
        [[[0.5, 0.5]]]
    """
    check_temperature(softness, "softness")
    check_same_batch(queries, keys, 3, "queries [B, S, D] and keys [B, T, D]")
    if queries.shape[2] != keys.shape[2]:
        raise InputError(
            f"queries and keys of one length are needed, got {queries.shape[2]} and {keys.shape[2]}"
        )
    energy = F.normalize(queries, dim=2) @ F.normalize(keys, dim=2).transpose(1, 2)
    return torch.softmax(energy / softness, dim=2)


@in_full_precision
def similarities(feature_map: Tensor) -> Tensor:
    """The inner products of the maps of each two images of a batch, ``[B, B]``.

    The attention is computed from them. The maps are neither centred nor normalised.

    Source: Chen et al., AAAI 2021 (see `semckd_loss`).

    Args:
        feature_map: ``[B, C, H, W]``.

    Raises:
        InputError: It is not such a map.

    Example:
        >>> similarities(torch.ones(2, 3, 1, 2)).tolist()
        [[6.0, 6.0], [6.0, 6.0]]
    """
    check_tensor(feature_map, "feature maps [B, C, H, W]")
    rows = feature_map.flatten(1)
    return rows @ rows.T


class SemCKD(FeatureMethod):
    """Stages paired by attention: ``ce * CE + kd * KD + weight * sum a_ij |P_ij(F_i) - G_j|^2``.

    Each student stage is projected (`Projection`) for each teacher stage. An attention over the
    teacher's stages gives the weight of each pair for each image, see
    `dskd.methods.semckd.layer_attention` and `dskd.losses.semckd`. Its queries and keys
    (`Embedding`) are computed from the similarities between the image and the others of its batch,
    in the student's map and in the teacher's. Numbers of stages and sizes may differ: of two sizes,
    the larger map is average-pooled to the smaller.

    A row of these similarities is as long as the batch, and each position in it has its own
    weights. The rows are built for the largest batch of the run. A smaller batch, such as the last
    of an epoch, is filled up with zeros; the authors' code leaves it out. A projection is twice as
    wide as the teacher's map, as published: for teachers with many channels (ResNet50) the
    projections are many times as large as the student.

    Source: Chen et al., Cross-Layer Distillation with Semantic Calibration, AAAI 2021,
    arXiv 2012.03236. The weights are those of the authors' scripts for CIFAR-100, which distil
    predictions too. 400 is a lot for small images and few epochs: the digits demo may diverge with
    it, and learns well with 20.

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the projected stages.
        temperature: T of the predictions.
        softness: Temperature of the attention. The larger it is, the more evenly a stage learns
            from all of the teacher's.

    Raises:
        InputError: A setting is out of range, or one of the two has no stages.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 1.0, "weight": 400.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 400.0,
        temperature: Positive = 4.0,
        softness: Positive = 1.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_stages(pair)
        self.needs = TeacherNeeds(logits=True, stages=tuple(range(len(teacher))))
        self.queries = nn.ModuleList(Embedding(pair.largest_batch) for _ in student)
        self.keys = nn.ModuleList(Embedding(pair.largest_batch) for _ in teacher)
        self.projections = nn.ModuleList(Projection(s, t) for s, t in product(student, teacher))
        self.weight, self.softness = weight, softness

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the projected stages."""
        pairs = [*product(student.stages, teacher.stages)]
        projected = [
            projection(stage)
            for projection, (stage, _) in zip(self.projections, pairs, strict=True)
        ]
        attention = self.attention(student.stages, teacher.stages)
        return {"semckd": self.weight * semckd_loss(projected, [t for _, t in pairs], attention)}

    def attention(
        self, student_stages: tuple[Tensor, ...], teacher_stages: tuple[Tensor, ...]
    ) -> Tensor:
        """The weight of each teacher stage for each student stage, ``[B, S, T]``."""
        queries, keys = (
            torch.stack(
                [embed(similarities(m)) for embed, m in zip(embeddings, maps, strict=True)], dim=1
            )
            for embeddings, maps in ((self.queries, student_stages), (self.keys, teacher_stages))
        )
        return layer_attention(queries, keys, self.softness)


class Embedding(nn.Module):
    """The query or key of each image: two linear layers on its similarities to its batch.

    Source: Chen et al., AAAI 2021 (see `SemCKD`), in the form of the authors' code.
    `layer_attention` scales queries and keys to unit length.

    Args:
        largest_batch: The largest number of images in a batch.

    Example:
        >>> Embedding(16)(torch.zeros(5, 5)).shape
        torch.Size([5, 4])
    """

    def __init__(self, largest_batch: int) -> None:
        super().__init__()
        length = max(1, largest_batch // 4)
        self.largest_batch = largest_batch
        self.layers = nn.Sequential(
            nn.Linear(largest_batch, 2 * length), nn.ReLU(), nn.Linear(2 * length, length)
        )

    def forward(self, similarities: Tensor) -> Tensor:
        """``[B, D]``, from ``[B, B]``.

        Raises:
            InputError: The batch is larger than the largest.
        """
        missing = self.largest_batch - len(similarities)
        if missing < 0:
            raise InputError(
                f"semckd was built for batches of {self.largest_batch} images at most, got "
                f"{len(similarities)}; give it a pair of that largest_batch"
            )
        rows = F.pad(similarities, (0, missing))
        with outside_float16(rows.device.type):  # sums over whole maps are beyond its range
            embedded: Tensor = self.layers(rows)
        return embedded


class Projection(nn.Module):
    """From a student stage to a teacher stage: 1x1, 3x3 and 1x1 convolutions, wide inside.

    Inside, it is twice as wide as the teacher's map. BatchNorm and ReLU stand between the
    convolutions; the output can be negative.

    Source: Chen et al., AAAI 2021 (see `SemCKD`), in the form of the authors' code.

    Args:
        stage: The student's stage.
        target: The teacher's map.

    Example:
        >>> projection = Projection(StageSpec(16, 8, 8, True), StageSpec(32, 4, 4, True))
        >>> projection(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 32, 4, 4])
    """

    def __init__(self, stage: StageSpec, target: StageSpec) -> None:
        super().__init__()
        self.size = (target.height, target.width)
        wide = 2 * target.channels
        self.layers = nn.Sequential(
            nn.Conv2d(stage.channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, target.channels, 1, bias=False),
        )
        self.layers.to(memory_format=torch.channels_last)

    def forward(self, feature_map: Tensor) -> Tensor:
        """``[B, C_t, H, W]``, at the smaller size of stage and target."""
        projected: Tensor = self.layers(pool_to(feature_map, *self.size))
        return projected
