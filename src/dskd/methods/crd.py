"""Contrastive representation distillation: an image is found again among all others."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dskd.data.epoch_plan import draw_below
from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.contrast import crd_terms, remembered
from dskd.losses.precision import full_precision
from dskd.methods.base import FeatureMethod, Pair, TeacherNeeds, check_pooled
from dskd.models.output import ModelOutput
from dskd.settings import Count, Fraction, Positive, Weight, checked

EVENLY = 2**32
"""Numbers drawn below this are scaled to any smaller range, even but for range / 2^32."""


class CRD(FeatureMethod):
    """Finds each image again in the other's memory: ``ce * CE + kd * KD + weight * CRD``.

    The pooled vectors of both go through a linear layer each, trained with the student, to unit
    vectors of one length. A memory keeps such a vector of every training image for both sides.
    See `dskd.losses.crd` for the loss: an image's own row is told apart from ``negatives`` rows
    of images of other classes (of all other images where there is one class), drawn evenly
    and with replacement, never more than there are other images. Then the rows move.
    The memory is state of the run; it stays as it is in eval mode.

    Source: Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699, section 3.1. Sizes, momentum and
    temperature are those of its authors' code, which draws without replacement where it can.
    ``literature`` is CRD alone; the paper's CRD+KD, which its authors' code runs as 1, 1 and 0.8,
    is the default here.

    Args:
        pair: Student and teacher, of the same classes, with pooled vectors.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the contrast.
        temperature: T of the predictions.
        feat_dim: Length of the vectors that are compared.
        negatives: Images that each is contrasted with.
        contrast_temperature: T of the contrast.
        momentum: Share of the old in a row of the memory after an update.

    Raises:
        InputError: A setting is out of range, one of the two has no pooled vector, or there are
            no two images.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 0.8}}
    needs = TeacherNeeds(logits=True, pooled=True)
    ranks = False  # each process would remember its own images only
    uncompiled = "torch's code for its draw of negatives (whole numbers that wrap) crashes"

    student_memory: Tensor
    teacher_memory: Tensor
    log_z: Tensor
    by_class: Tensor
    start: Tensor
    size: Tensor

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 0.8,
        temperature: Positive = 4.0,
        feat_dim: Count = 128,
        negatives: Count = 16384,
        contrast_temperature: Positive = 0.07,
        momentum: Fraction = 0.5,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_pooled(pair)
        images = len(pair.labels)
        if images < 2:
            raise InputError(
                f"crd tells training images apart, and there are {images}; give two or more"
            )
        self.weight, self.momentum = weight, momentum
        self.negatives = min(negatives, images - 1)
        self.contrast_temperature = contrast_temperature
        self.student_embedding = Embedding(student, feat_dim)
        self.teacher_embedding = Embedding(teacher, feat_dim)
        bound = math.sqrt(3 / feat_dim)  # rows of about unit length
        for side in ("student", "teacher"):
            memory = torch.empty(images, feat_dim).uniform_(-bound, bound)
            self.register_buffer(f"{side}_memory", memory)
        self.register_buffer("log_z", torch.full((2,), math.inf))
        for name, values in zip(("by_class", "start", "size"), _blocks(pair.labels), strict=True):
            self.register_buffer(name, values, persistent=False)

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The contrast."""
        assert student.pooled is not None
        assert teacher.pooled is not None
        contrasted = torch.cat([batch.indices[:, None], self.others(batch)], dim=1)
        loss = self.contrast(student.pooled, teacher.pooled, batch.indices, contrasted)
        return {"crd": self.weight * loss}

    def others(self, batch: Batch) -> Tensor:
        """The images that each image is contrasted with, int64 ``[B, negatives]``."""
        start, size = self.start[batch.indices, None], self.size[batch.indices, None]
        numbers = draw_below(batch.seeds, self.negatives, EVENLY)
        places = numbers * (len(self.by_class) - size) // EVENLY
        return self.by_class[places + size * (places >= start)]

    def contrast(
        self, student: Tensor, teacher: Tensor, indices: Tensor, contrasted: Tensor
    ) -> Tensor:
        """The loss, from memories that are updated only then, and only in training.

        Args:
            student: Pooled vectors, ``[B, D_s]``.
            teacher: Pooled vectors, ``[B, D_t]``.
            indices: int64 ``[B]``, which images these are.
            contrasted: int64 ``[B, 1 + M]``, the same, each followed by M others.
        """
        vectors = self.student_embedding(student), self.teacher_embedding(teacher)
        memories = self.student_memory, self.teacher_memory
        loss, log_z = crd_terms(
            *vectors, *memories, contrasted, self.log_z, self.contrast_temperature
        )
        if self.training:
            self.log_z = log_z
            self.student_memory, self.teacher_memory = (
                remembered(memory, indices, vector, self.momentum)
                for memory, vector in zip(memories, vectors, strict=True)
            )
        return loss


class Embedding(nn.Module):
    """A pooled vector as a unit vector of another length.

    Args:
        length: Of the pooled vector.
        feat_dim: Of the unit vector.
    """

    def __init__(self, length: int, feat_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(length, feat_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """Unit vectors ``[B, feat_dim]``, in float32 at least."""
        return F.normalize(full_precision(self.linear(pooled)))


def _blocks(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All images class by class, and where each image's class starts in that, and its size.

    Where all are of one class, each image counts as a class of its own.
    """
    if (labels == labels[0]).all():
        labels = torch.arange(len(labels))
    sizes = labels.bincount()
    starts = sizes.cumsum(0) - sizes
    return labels.argsort(stable=True), starts[labels], sizes[labels]
