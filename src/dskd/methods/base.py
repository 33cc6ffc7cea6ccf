"""What every method is: the student, what is trained beside it, and the named losses of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dskd.data.resident import Batch
from dskd.errors import InputError
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec
from dskd.models.stages import StagedModel


@dataclass(frozen=True)
class Pair:
    """The student to train, and what it and its teacher give for a picture.

    Attributes:
        student: The student.
        student_spec: Its classes and stages.
        teacher_spec: The teacher's, None without a teacher.
    """

    student: StagedModel
    student_spec: ModelSpec
    teacher_spec: ModelSpec | None = None


@dataclass(frozen=True)
class TeacherNeeds:
    """Which of the teacher's outputs a method reads.

    Attributes:
        logits: Whether it reads the logits.
        stages: Which stages, from 0.
        pooled: Whether it reads the pooled vector.
    """

    logits: bool = False
    stages: tuple[int, ...] = ()
    pooled: bool = False

    def __bool__(self) -> bool:
        return self.logits or bool(self.stages) or self.pooled


@dataclass(frozen=True)
class StepOutput:
    """What a method makes of a batch.

    Attributes:
        losses: Named scalars, already weighted: their sum is minimised.
        logits: The student's, ``[B, K]``.
        metrics: Named scalars for the log, detached.
    """

    losses: dict[str, Tensor]
    logits: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def objective(self) -> Tensor:
        """The sum of the losses."""
        return torch.stack(list(self.losses.values())).sum()


class Method(nn.Module):
    """A way to train a student: a subclass a method, its keyword arguments its settings.

    A method's file carries its name, and that is all the registration there is. Constructors take
    a `Pair` and keyword-only settings, whose annotations are checked (`dskd.settings.checked`).

    Attributes:
        needs: Which of the teacher's outputs it reads; the teacher is not run for an empty one.
        needs_teacher: Whether it can do without a teacher at all.
        presets: Named sets of settings, for ``method.preset``.
    """

    needs: TeacherNeeds = TeacherNeeds()
    needs_teacher: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.student = pair.student

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of a batch, given the teacher's answers to the same pictures."""
        raise TypeError(f"{type(self).__name__} does not say how a batch is learned from")

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """All that can be judged by labels, for evaluation: logits ``[B, K]`` by name.

        The student's own come under ``student``.
        """
        return {"student": self.student(images).logits}

    def deployed(self) -> nn.Module:
        """What ships: the plain student, with its own keys."""
        return self.student.module

    def beside(self) -> dict[str, Tensor]:
        """The state of what is trained beside the student, which is never deployed."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("student.")
        }


def answered(teacher: ModelOutput | None) -> ModelOutput:
    """The teacher's output; a method that reads it cannot do without."""
    assert teacher is not None, "this method needs a teacher"
    return teacher


def check_classes(pair: Pair) -> ModelSpec:
    """The teacher's spec, once its classes are known to be the student's.

    Raises:
        InputError: There is no teacher, or the two differ in classes.
    """
    if pair.teacher_spec is None:
        raise InputError("this method needs a teacher; name one with teacher.name")
    student, teacher = pair.student_spec.classes, pair.teacher_spec.classes
    if student != teacher:
        raise InputError(
            f"the teacher has {teacher} classes, the student {student}; "
            "they must be trained for the same classes"
        )
    return pair.teacher_spec
