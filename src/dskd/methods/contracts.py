"""The data that goes into a method and comes out of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec
from dskd.models.staged_model import StagedModel


@dataclass(frozen=True)
class Pair:
    """The student to train and the shapes of what student and teacher compute for an image.

    Attributes:
        student: The student.
        student_spec: The student's classes and stages.
        teacher_spec: The teacher's; None without a teacher.
        teacher_classifier: A copy of the teacher's last linear layer, for methods that reuse it.
            None if there is no teacher, or if it does not end in a linear layer.
        labels: int64 ``[N]``, the labels of the training images by index, for methods that
            remember something about each image.
        largest_batch: The largest number of images per step in one process.
        other_classes: Whether the teacher's own classes are others, and its logits are zeros.
    """

    student: StagedModel
    student_spec: ModelSpec
    teacher_spec: ModelSpec | None = None
    teacher_classifier: nn.Linear | None = None
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    largest_batch: int = 1
    other_classes: bool = False

    @classmethod
    def measured(
        cls,
        student: StagedModel,
        teacher: StagedModel | None,
        measure: Callable[[StagedModel, str], ModelSpec],
        labels: Tensor,
        largest_batch: int,
    ) -> Pair:
        """A pair of two models.

        Args:
            student: The student.
            teacher: The frozen teacher; None without a teacher.
            measure: Takes a model, and ``student`` or ``teacher``, and measures its outputs.
            labels: See `labels`.
            largest_batch: See `largest_batch`.
        """
        spec = measure(student, "student")
        if teacher is None:
            return cls(student, spec, labels=labels, largest_batch=largest_batch)
        classifier = copy.deepcopy(teacher.linear_classifier)
        other, taught = teacher.other_classes is not None, measure(teacher, "teacher")
        return cls(student, spec, taught, classifier, labels, largest_batch, other)


@dataclass(frozen=True)
class TeacherNeeds:
    """Which teacher outputs a method reads.

    Attributes:
        logits: Whether it reads the logits.
        stages: Which stages it reads, from 0.
        pooled: Whether it reads the pooled vector.
        last: Whether it reads the last feature map (`ModelOutput.last`).
        rotated: Whether it reads them for four rotations of every image
            (`dskd.data.transforms.rotations`) instead of for the image alone.
        map_size: The largest side of the stages' maps that it reads: it may get larger maps
            average-pooled to this side. None for maps as the teacher gives them.
    """

    logits: bool = False
    stages: tuple[int, ...] = ()
    pooled: bool = False
    last: bool = False
    rotated: bool = False
    map_size: int | None = None

    def __bool__(self) -> bool:
        return self.logits or bool(self.stages) or self.pooled or self.last

    def __or__(self, other: TeacherNeeds) -> TeacherNeeds:
        """What two methods read together."""
        sizes = [needs.map_size for needs in (self, other) if needs.stages]
        return TeacherNeeds(
            self.logits or other.logits,
            tuple(sorted({*self.stages, *other.stages})),
            self.pooled or other.pooled,
            self.last or other.last,
            self.rotated or other.rotated,
            None if None in sizes else max((size for size in sizes if size), default=None),
        )


class StepOutput(NamedTuple):
    """The result of a method for one batch.

    A named tuple: `DistributedDataParallel` finds the losses in it.

    Attributes:
        losses: Named scalars, already weighted; training minimises their sum.
        logits: The student's logits, ``[B, K]``.
        metrics: Named scalars for the log, detached.
    """

    losses: dict[str, Tensor]
    logits: Tensor
    metrics: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def objective(self) -> Tensor:
        """The sum of the losses."""
        return torch.stack(list(self.losses.values())).sum()


TeacherEpochs = Callable[[int], Iterator[tuple[Batch, ModelOutput | None]]]
"""Takes a number of epochs and gives their batches, each with the teacher's output."""


def require_outputs(teacher: ModelOutput | None) -> ModelOutput:
    """The teacher's output, for a method that always has a teacher."""
    assert teacher is not None, "this method needs a teacher"
    return teacher
