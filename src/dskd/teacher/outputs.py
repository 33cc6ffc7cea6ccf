"""Where a method gets its teacher's outputs from: asked each time, or once for several students."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from dskd.data.loader import Batch
from dskd.data.transforms import rotations
from dskd.engine.cuda_graph import Recorded, Recorder
from dskd.methods.contracts import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.runtime.compile import compiled
from dskd.runtime.device import Stopwatch
from dskd.teacher.frozen import FrozenTeacher

TeacherForward = Callable[[Tensor], ModelOutput]
"""From images to a teacher's outputs."""
Planned = Callable[[int], Iterator[Batch]]
"""From a step to the batches of its epoch from there on."""


@dataclass
class CacheCounts:
    """Of how many images the answers came from a store.

    Attributes:
        hits: From the store.
        images: In all.
    """

    hits: int = 0
    images: int = 0

    @property
    def share(self) -> float:
        """Of the images so far."""
        return self.hits / self.images if self.images else 0.0


class TeacherOutputs:
    """A teacher that is asked at every step.

    Args:
        teacher: The frozen teacher; None for methods that have none.
        compile: Have torch compile its forward pass.

    Attributes:
        watch: Time spent on answers.
        tally: Of answers that came from a store; None where none are kept.
        answering: Who is asked: the teacher, compiled or recorded where that was wanted.
    """

    def __init__(self, teacher: FrozenTeacher | None, *, compile: bool = False) -> None:
        self.teacher = teacher
        self.watch = Stopwatch()
        self.cache_counts: CacheCounts | None = None
        self.teacher_forward: TeacherForward | None = teacher
        if teacher is not None and compile:
            self.teacher_forward = compiled(teacher)

    def following(self, planned: Planned, step: int, needs: TeacherNeeds) -> Iterator[Batch]:
        """The epoch's batches from a step on, for those who ask before a student comes to them."""
        return planned(step)

    def record(self, size: int, recorder: Recorder) -> None:
        """Has the teacher's outputs to so many images recorded once and replayed.

        An answer is then overwritten by the next.
        """
        if self.teacher is not None:
            self.teacher_forward = Recorded(self.teacher, size, recorder)

    def __call__(self, batch: Batch, needs: TeacherNeeds) -> ModelOutput | None:
        """What a method with these needs may read; None where it reads nothing."""
        if self.teacher_forward is None or not needs:
            return None
        with self.watch.running(batch.images.device):
            teacher_output, hits = self.ask(self.teacher_forward, batch, needs)
        if self.cache_counts is not None:
            self.cache_counts.hits += hits
            self.cache_counts.images += len(batch.labels)
        return teacher_output

    def ask(
        self, teacher_forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """The answer, and for how many of the images it came from a store."""
        return teacher_forward(rotations(batch.images) if needs.rotated else batch.images), 0


class ForwardedOutputs(TeacherOutputs):
    """Answers that another source gives.

    Args:
        source: Who is asked.
    """

    def __init__(self, source: TeacherOutputs) -> None:
        super().__init__(source.teacher)
        self.source, self.teacher_forward = source, source.teacher_forward
        self.cache_counts = CacheCounts() if source.cache_counts is not None else None

    def ask(
        self, teacher_forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """See `TeacherOutputs.ask`."""
        return self.source.ask(teacher_forward, batch, needs)


class SharedOutputs:
    """One answer a step for all the students that see the same batches at the same time.

    The batches of two students are the same where seed, epoch and step are, since the epoch plan
    is a function of these. Only the answers of the newest step are held.

    Args:
        source: Who answers for all.

    Attributes:
        asked: How many steps of students were answered.
        ran: How many times the source was asked for it.

    Example:
        >>> from dskd.models.staged_model import StagedModel
        >>> from dskd.models.zoo import build
        >>> net = build("resnet8", num_classes=10)
        >>> teacher = Teacher(StagedModel(net, mean=(0.5,) * 3, std=(0.5,) * 3))
        >>> shared = SharedTeacher(Answers(teacher))
        >>> one, other = shared.answers(), shared.answers()
    """

    def __init__(self, source: TeacherOutputs) -> None:
        self.source = source
        self.asked, self.ran = 0, 0
        self._step: tuple[int, int] | None = None
        self._held: dict[bool, tuple[ModelOutput, int]] = {}

    def teacher_outputs(self) -> TeacherOutputs:
        """The answers for one more student."""
        return _Shared(self)

    def ask(
        self, teacher_forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """The answer of this step, asked for unless another student has; see `TeacherOutputs.ask`."""
        if self._step != (batch.epoch, batch.step):
            self._step, self._held = (batch.epoch, batch.step), {}
        self.asked += 1
        if needs.rotated not in self._held:
            self.ran += 1
            self._held[needs.rotated] = self.source.ask(teacher_forward, batch, needs)
        return self._held[needs.rotated]


class _Shared(ForwardedOutputs):
    """One student's share of a `SharedOutputs`."""

    def __init__(self, shared: SharedOutputs) -> None:
        super().__init__(shared.source)
        self.shared = shared

    def ask(
        self, teacher_forward: TeacherForward, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        return self.shared.ask(teacher_forward, batch, needs)
