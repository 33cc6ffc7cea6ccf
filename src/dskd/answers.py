"""Where a method gets its teacher's answers from: asked each time, or once for several students."""

from __future__ import annotations

from dskd.data.augment import rotations
from dskd.data.resident import Batch
from dskd.device import Stopwatch
from dskd.methods.base import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.models.teacher import Teacher


class Answers:
    """A teacher that is asked at every step.

    Args:
        teacher: The frozen teacher; None for methods that have none.

    Attributes:
        watch: Time spent on answers.
    """

    def __init__(self, teacher: Teacher | None) -> None:
        self.teacher = teacher
        self.watch = Stopwatch()

    def __call__(self, batch: Batch, needs: TeacherNeeds) -> ModelOutput | None:
        """What a method with these needs may read; None where it reads nothing."""
        if self.teacher is None or not needs:
            return None
        with self.watch.running(batch.images.device):
            return self._answer(self.teacher, batch, needs)

    def _answer(self, teacher: Teacher, batch: Batch, needs: TeacherNeeds) -> ModelOutput:
        answer: ModelOutput = teacher(rotations(batch.images) if needs.rotated else batch.images)
        return answer


class SharedTeacher:
    """One answer a step for all the students that see the same batches at the same time.

    The batches of two students are the same where seed, epoch and step are, since the epoch plan
    is a function of these. Only the answers of the newest step are kept.

    Args:
        teacher: The frozen teacher.

    Attributes:
        asked: How many steps of students were answered.
        ran: How many times the teacher ran for it.

    Example:
        >>> from dskd.models.stages import StagedModel
        >>> from dskd.models.zoo import build
        >>> net = build("resnet8", num_classes=10)
        >>> shared = SharedTeacher(Teacher(StagedModel(net, mean=(0.5,) * 3, std=(0.5,) * 3)))
        >>> one, other = shared.answers(), shared.answers()
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.asked, self.ran = 0, 0
        self._step: tuple[int, int] | None = None
        self._kept: dict[bool, ModelOutput] = {}

    def answers(self) -> Answers:
        """The answers for one more student."""
        return _Shared(self)

    def answer(self, batch: Batch, needs: TeacherNeeds) -> ModelOutput | None:
        """The answer of this step, where another student has asked for it."""
        if self._step != (batch.epoch, batch.step):
            self._step, self._kept = (batch.epoch, batch.step), {}
        self.asked += 1
        return self._kept.get(needs.rotated)

    def keep(self, needs: TeacherNeeds, answer: ModelOutput) -> None:
        """Keeps an answer until the next step."""
        self.ran += 1
        self._kept[needs.rotated] = answer


class _Shared(Answers):
    """One student's share of a `SharedTeacher`."""

    def __init__(self, shared: SharedTeacher) -> None:
        super().__init__(shared.teacher)
        self.shared = shared

    def _answer(self, teacher: Teacher, batch: Batch, needs: TeacherNeeds) -> ModelOutput:
        answer = self.shared.answer(batch, needs)
        if answer is None:
            answer = super()._answer(teacher, batch, needs)
            self.shared.keep(needs, answer)
        return answer
