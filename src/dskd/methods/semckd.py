"""Semantic calibration: attention says which of the teacher's stages a stage learns from."""

from __future__ import annotations

from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.feature_maps import pool_to
from dskd.losses.fusion import layer_attention, semckd, similarities
from dskd.methods.base import FeatureMethod, Pair, TeacherNeeds, check_stages
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec
from dskd.settings import Positive, Weight, checked


class SemCKD(FeatureMethod):
    """Stages paired by attention: ``ce * CE + kd * KD + weight * sum a_ij |P_ij(F_i) - G_j|^2``.

    Every stage of the student is projected (`Projection`) for every stage of the teacher. How much
    an image learns from each pair is an attention over the teacher's stages, see
    `dskd.losses.layer_attention` and `dskd.losses.semckd`: its queries and keys are made
    (`Embedding`) of how alike the image is to the others of its batch, by the student's map and
    by the teacher's. Numbers of stages, and sizes, may differ: of two sizes, the larger map is
    average-pooled to the smaller.

    A row of these similarities is as long as the batch, and each place in it has weights of its
    own. The rows are built for the largest batch of the run and filled up with zeros in a smaller
    one, such as the last of an epoch, which the authors' code leaves out. A projection is twice as
    wide as the teacher's map, as published: for teachers of many channels (ResNet50) the
    projections are many times as large as the student.

    Source: Chen et al., Cross-Layer Distillation with Semantic Calibration, AAAI 2021,
    arXiv 2012.03236. Weights are those of its authors' scripts for CIFAR-100, which distil
    predictions too. 400 is much where images are small and epochs few: the digits demo may
    diverge with it, and learns well with 20.

    Args:
        pair: Student and teacher, of the same classes, with stages.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the projected stages.
        temperature: T of the predictions.
        softness: Of the attention: the larger, the more evenly a stage learns from all of the
            teacher's.

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
        """The projected stages' loss."""
        pairs = [*product(student.stages, teacher.stages)]
        projected = [
            projection(stage)
            for projection, (stage, _) in zip(self.projections, pairs, strict=True)
        ]
        attention = self.attention(student.stages, teacher.stages)
        return {"semckd": self.weight * semckd(projected, [t for _, t in pairs], attention)}

    def attention(
        self, student_stages: tuple[Tensor, ...], teacher_stages: tuple[Tensor, ...]
    ) -> Tensor:
        """How much each stage of the student learns from each of the teacher's, ``[B, S, T]``."""
        queries, keys = (
            torch.stack(
                [embed(similarities(m)) for embed, m in zip(embeddings, maps, strict=True)], dim=1
            )
            for embeddings, maps in ((self.queries, student_stages), (self.keys, teacher_stages))
        )
        return layer_attention(queries, keys, self.softness)


class Embedding(nn.Module):
    """A query or key of each image: two linear layers on its similarities to its batch.

    Source: Chen et al., AAAI 2021 (see `SemCKD`), in the form of its authors' code. The unit
    length of queries and keys is `dskd.losses.layer_attention`'s part.

    Args:
        largest_batch: Images of a batch at most.

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
        embedded: Tensor = self.layers(F.pad(similarities, (0, missing)))
        return embedded


class Projection(nn.Module):
    """From a stage of the student to one of the teacher: 1x1, 3x3, 1x1, twice as wide within.

    BatchNorm and ReLU stand between the convolutions; the last gives values of either sign.

    Source: Chen et al., AAAI 2021 (see `SemCKD`), in the form of its authors' code.

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
