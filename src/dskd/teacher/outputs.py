"""Where a method gets its teacher's answers from: asked each time, or once for several students."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from dskd.data.augmentation import rotations
from dskd.data.loader import Batch
from dskd.engine.cuda_graph import Recorded, Recorder
from dskd.methods.base import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.runtime.compile import compiled
from dskd.runtime.device import Stopwatch
from dskd.teacher.frozen import Teacher

Answering = Callable[[Tensor], ModelOutput]
"""From pictures to a teacher's answers."""
Planned = Callable[[int], Iterator[Batch]]
"""From a step to the batches of its epoch from there on."""


@dataclass
class Tally:
    """Of how many pictures the answers came from a store.

    Attributes:
        hits: From the store.
        pictures: In all.
    """

    hits: int = 0
    pictures: int = 0

    @property
    def share(self) -> float:
        """Of the pictures so far."""
        return self.hits / self.pictures if self.pictures else 0.0


class Answers:
    """A teacher that is asked at every step.

    Args:
        teacher: The frozen teacher; None for methods that have none.
        compile: Have torch compile its forward pass.

    Attributes:
        watch: Time spent on answers.
        tally: Of answers that came from a store; None where none are kept.
        answering: Who is asked: the teacher, compiled or recorded where that was wanted.
    """

    def __init__(self, teacher: Teacher | None, *, compile: bool = False) -> None:
        self.teacher = teacher
        self.watch = Stopwatch()
        self.tally: Tally | None = None
        self.answering: Answering | None = teacher
        if teacher is not None and compile:
            self.answering = compiled(teacher)

    def following(self, planned: Planned, step: int, needs: TeacherNeeds) -> Iterator[Batch]:
        """The epoch's batches from a step on, for those who ask before a student comes to them."""
        return planned(step)

    def record(self, size: int, recorder: Recorder) -> None:
        """Has the teacher's answers to so many pictures recorded once and replayed.

        An answer is then overwritten by the next.
        """
        if self.teacher is not None:
            self.answering = Recorded(self.teacher, size, recorder)

    def __call__(self, batch: Batch, needs: TeacherNeeds) -> ModelOutput | None:
        """What a method with these needs may read; None where it reads nothing."""
        if self.answering is None or not needs:
            return None
        with self.watch.running(batch.images.device):
            answer, hits = self.ask(self.answering, batch, needs)
        if self.tally is not None:
            self.tally.hits += hits
            self.tally.pictures += len(batch.labels)
        return answer

    def ask(
        self, answering: Answering, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """The answer, and for how many of the pictures it came from a store."""
        return answering(rotations(batch.images) if needs.rotated else batch.images), 0


class PassedOn(Answers):
    """Answers that another source gives.

    Args:
        source: Who is asked.
    """

    def __init__(self, source: Answers) -> None:
        super().__init__(source.teacher)
        self.source, self.answering = source, source.answering
        self.tally = Tally() if source.tally is not None else None

    def ask(
        self, answering: Answering, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """See `Answers.ask`."""
        return self.source.ask(answering, batch, needs)


class SharedTeacher:
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

    def __init__(self, source: Answers) -> None:
        self.source = source
        self.asked, self.ran = 0, 0
        self._step: tuple[int, int] | None = None
        self._held: dict[bool, tuple[ModelOutput, int]] = {}

    def answers(self) -> Answers:
        """The answers for one more student."""
        return _Shared(self)

    def ask(
        self, answering: Answering, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        """The answer of this step, asked for unless another student has; see `Answers.ask`."""
        if self._step != (batch.epoch, batch.step):
            self._step, self._held = (batch.epoch, batch.step), {}
        self.asked += 1
        if needs.rotated not in self._held:
            self.ran += 1
            self._held[needs.rotated] = self.source.ask(answering, batch, needs)
        return self._held[needs.rotated]


class _Shared(PassedOn):
    """One student's share of a `SharedTeacher`."""

    def __init__(self, shared: SharedTeacher) -> None:
        super().__init__(shared.source)
        self.shared = shared

    def ask(
        self, answering: Answering, batch: Batch, needs: TeacherNeeds
    ) -> tuple[ModelOutput, int]:
        return self.shared.ask(answering, batch, needs)
