"""Where a method gets its teacher's answers from: asked each time, or once for several students."""

from __future__ import annotations

import time

import torch

from dskd.data.augment import rotations
from dskd.data.resident import Batch
from dskd.methods.base import TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.models.teacher import Teacher


class Answers:
    """A teacher that is asked at every step.

    Args:
        teacher: The frozen teacher; None for methods that have none.
    """

    def __init__(self, teacher: Teacher | None) -> None:
        self.teacher = teacher

    def __call__(self, batch: Batch, needs: TeacherNeeds) -> ModelOutput | None:
        """What a method with these needs may read; None where it reads nothing."""
        if self.teacher is None or not needs:
            return None
        output: ModelOutput = self.teacher(
            rotations(batch.images) if needs.rotated else batch.images
        )
        return output


class SharedAnswers(Answers):
    """One answer a step for all the students that see the same batches at the same time.

    The batches of two students are the same where seed, epoch and step are: the epoch plan is a
    function of these. Only the answers of the newest step are kept.

    Args:
        teacher: The frozen teacher.

    Attributes:
        seconds: Spent by the teacher, in all.
        asked: How many steps of students were answered.
        given: How many times the teacher ran for it.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(teacher)
        self.seconds, self.asked, self.given = 0.0, 0, 0
        self._step: tuple[int, int] | None = None
        self._kept: dict[bool, ModelOutput | None] = {}

    def __call__(self, batch: Batch, needs: TeacherNeeds) -> ModelOutput | None:
        """As `Answers`, from the step's earlier answer where there is one."""
        if not needs:
            return None
        if self._step != (batch.epoch, batch.step):
            self._step, self._kept = (batch.epoch, batch.step), {}
        self.asked += 1
        if needs.rotated not in self._kept:
            start = time.perf_counter()
            self._kept[needs.rotated] = super().__call__(batch, needs)
            if batch.images.is_cuda:
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - start
            self.given += 1
        return self._kept[needs.rotated]
