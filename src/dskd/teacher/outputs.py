"""Where a method gets the teacher's outputs: from a forward pass, or one pass for several students.

`dskd.teacher.cache` adds outputs from disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dskd.data.loader import Batch
from dskd.data.transforms import rotations
from dskd.methods.contracts import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.runtime.compile import compiled
from dskd.runtime.device import Stopwatch
from dskd.teacher.frozen import FrozenTeacher

TeacherForward = Callable[[Tensor], ModelOutput]
"""From images to a teacher's outputs."""


@dataclass
class CacheCounts:
    """How many samples had their teacher outputs in the cache.

    Attributes:
        hits: Samples found in the cache.
        samples: All samples.
    """

    hits: int = 0
    samples: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the samples found in the cache."""
        return self.hits / self.samples if self.samples else 0.0


class TeacherOutputs:
    """The teacher's outputs, by a forward pass at every step.

    Args:
        teacher: The frozen teacher; None for methods without one.
        compile: Whether torch compiles its forward pass.

    Attributes:
        watch: Time spent on teacher outputs.
        cache_counts: How many came from a cache; None without a cache.
        forward: The teacher's forward pass, compiled if that was asked for.
    """

    def __init__(self, teacher: FrozenTeacher | None, *, compile: bool = False) -> None:
        self.teacher = teacher
        self.watch = Stopwatch()
        self.cache_counts: CacheCounts | None = None
        self.forward: TeacherForward | None = teacher
        if teacher is not None and compile:
            teacher.keep_hooks()
            self.forward = _copying(compiled(teacher)) if _on_gpu(teacher) else compiled(teacher)

    def check(self) -> None:
        """Checks a cache, if there is one, without writing anything."""

    def open(self) -> None:
        """Opens a cache, if there is one."""

    def __call__(self, batch: Batch, needs: TeacherNeeds) -> ModelOutput | None:
        """What a method with these needs may read; None if it reads nothing."""
        if self.forward is None or not needs:
            return None
        with self.watch.running(batch.images.device):
            output, hits = self.compute(self.forward, batch, needs)
        if self.cache_counts is not None:
            self.cache_counts.hits += hits
            self.cache_counts.samples += len(batch.labels)
        return output

    def compute(
        self, forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """The teacher's outputs, and for how many samples they came from a cache."""
        return forward(rotations(batch.images) if needs.rotated else batch.images), 0


class SharedOutputs:
    """One teacher forward pass a step for several students that train in lockstep.

    The students see the same batches in the same order. The first that reaches a step has the
    teacher's outputs computed; the others get the same tensors.

    Args:
        source: Where the outputs come from.
        needs: What the students read together; None for a student alone.

    Attributes:
        requests: How many steps of students asked for outputs.
        computed: How many times the source computed them.

    Example:
        >>> from dskd.models.staged_model import StagedModel
        >>> from dskd.models.zoo import build
        >>> net = build("resnet8", num_classes=10)
        >>> teacher = FrozenTeacher(StagedModel(net, mean=(0.5,) * 3, std=(0.5,) * 3))
        >>> shared = SharedOutputs(TeacherOutputs(teacher))
        >>> one, other = shared.for_student(), shared.for_student()
    """

    def __init__(self, source: TeacherOutputs, needs: TeacherNeeds | None = None) -> None:
        self.source, self.needs = source, needs
        self.requests, self.computed = 0, 0
        self._step: tuple[int, int] | None = None
        self._outputs: dict[tuple[int, bool], tuple[ModelOutput, int]] = {}

    def for_student(self) -> TeacherOutputs:
        """The outputs as one more student gets them."""
        return _OfOneStudent(self)

    def compute(
        self, forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """The outputs of this step, computed once (see `TeacherOutputs.compute`)."""
        if self._step != (batch.epoch, batch.step):
            self._step, self._outputs = (batch.epoch, batch.step), {}
        self.requests += 1
        kind = batch.part, needs.rotated
        if kind not in self._outputs:
            self.computed += 1
            if self.needs is not None and self.source.cache_counts is not None:
                needs = self.needs  # a cache gives only what it is asked for
            self._outputs[kind] = self.source.compute(forward, batch, needs)
        return self._outputs[kind]


class _OfOneStudent(TeacherOutputs):
    """What one student gets of `SharedOutputs`, with times and counts of its own."""

    def __init__(self, shared: SharedOutputs) -> None:
        super().__init__(shared.source.teacher)
        self.shared, self.forward = shared, shared.source.forward
        self.cache_counts = CacheCounts() if shared.source.cache_counts is not None else None

    def compute(
        self, forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        return self.shared.compute(forward, batch, needs)


def _on_gpu(teacher: FrozenTeacher) -> bool:
    return teacher.model.mean.device.type == "cuda"


def _copying(forward: TeacherForward) -> TeacherForward:
    """Outputs in memory of their own: a CUDA graph writes the next ones over its own."""

    def copied(images: Tensor) -> ModelOutput:
        logits, stages, pooled, last = forward(images)
        return ModelOutput(
            logits.clone(),
            tuple(stage.clone() for stage in stages),
            None if pooled is None else pooled.clone(),
            None if last is None else last.clone(),
        )

    return copied
