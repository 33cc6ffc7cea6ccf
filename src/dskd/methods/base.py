"""What every method is: the student, what is trained beside it, and the named losses of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses import logits as losses_of_logits
from dskd.methods.branches import BranchOutput
from dskd.models.output import ModelOutput
from dskd.models.spec import ModelSpec, StageSpec
from dskd.models.staged_model import StagedModel


@dataclass(frozen=True)
class Pair:
    """The student to train, and what it and its teacher give for an image.

    Attributes:
        student: The student.
        student_spec: Its classes and stages.
        teacher_spec: The teacher's, None without a teacher.
        teacher_classifier: A copy of the teacher's last linear layer, for methods that use it
            again; None where there is no teacher, or it ends in something else.
        labels: int64 ``[N]``, of the training images by their index, for methods that keep
            something of each image.
        largest_batch: Images of a step at most, in one process.
    """

    student: StagedModel
    student_spec: ModelSpec
    teacher_spec: ModelSpec | None = None
    teacher_classifier: nn.Linear | None = None
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    largest_batch: int = 1


@dataclass(frozen=True)
class TeacherNeeds:
    """Which of the teacher's outputs a method reads.

    Attributes:
        logits: Whether it reads the logits.
        stages: Which stages, from 0.
        pooled: Whether it reads the pooled vector.
        last: Whether it reads the last map of all (`ModelOutput.last`).
        rotated: Whether it reads them for four rotations of every image
            (`dskd.data.transforms.rotations`) in place of the image alone.
    """

    logits: bool = False
    stages: tuple[int, ...] = ()
    pooled: bool = False
    last: bool = False
    rotated: bool = False

    def __bool__(self) -> bool:
        return self.logits or bool(self.stages) or self.pooled or self.last

    def __or__(self, other: TeacherNeeds) -> TeacherNeeds:
        """What two methods read together."""
        return TeacherNeeds(
            self.logits or other.logits,
            tuple(sorted({*self.stages, *other.stages})),
            self.pooled or other.pooled,
            self.last or other.last,
            self.rotated or other.rotated,
        )


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


TeacherEpochs = Callable[[int], Iterator[tuple[Batch, ModelOutput | None]]]
"""From a number of epochs to their batches, each with the teacher's answer."""


class Method(nn.Module):
    """A way to train a student: a subclass a method, its keyword arguments its settings.

    A method's file carries its name, and that is all the registration there is. Constructors take
    a `Pair` and keyword-only settings, whose annotations are checked (`dskd.settings.checked`).

    Attributes:
        needs: Which of the teacher's outputs it reads; the teacher is not run for an empty one.
        needs_teacher: Whether it can do without a teacher at all.
        ranks: Whether several processes can train it together (see `dskd.runtime.distributed`).
        uncompiled: Why torch does not compile it (``train.compile``); empty where it does.
        presets: Named sets of settings, for ``method.preset``. ``literature`` holds the weights
            that the method was published with, where the defaults are ``ce = kd = 1``.
    """

    needs: TeacherNeeds = TeacherNeeds()
    needs_teacher: ClassVar[bool] = True
    ranks: ClassVar[bool] = True
    uncompiled: str = ""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.student = pair.student

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of a batch, given the teacher's outputs to the same images."""
        raise TypeError(f"{type(self).__name__} does not say how a batch is learned from")

    def prepare(self, teacher_epochs: TeacherEpochs) -> None:
        """Trains what must be trained before the student is; most methods have nothing of it.

        It runs once, in a run's beginning, from a random state that follows from the run's seed.

        Args:
            answered_epochs: Called with a number of epochs, gives their batches, each with the
                teacher's answer. They are other views than those of the run's own epochs.
        """

    def classifier_logits(self, images: Tensor) -> dict[str, Tensor]:
        """All that can be evaluated by labels, for evaluation: logits ``[B, K]`` by name.

        The student's own come under ``student``.
        """
        return {"student": self.student(images).logits}

    def deployed(self) -> nn.Module:
        """What ships: the plain student, with its own keys.

        A method whose student needs more than itself (simkd) gives a larger module here, which
        takes the same normalised images, and says how to build it by `addition` and `assemble`.
        """
        return self.student.module

    def deploy_config(self) -> dict[str, Any]:
        """What `assemble` needs to build the deployed module anew: plain values, for a file."""
        return {}

    @classmethod
    def assemble(cls, student: nn.Module, deploy_config: Mapping[str, Any]) -> nn.Module:
        """The deployed module with weights of any kind, from a plain student.

        Args:
            student: As its name and options build it.
            addition: What `addition` gave; read from a file, so of any kind.

        Raises:
            InputError: ``addition`` does not fit.
        """
        return student

    def auxiliary_state_dict(self) -> dict[str, Tensor]:
        """The state of what is trained beside the student, which is never deployed."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("student.")
        }


def require_outputs(teacher: ModelOutput | None) -> ModelOutput:
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


class FeatureMethod(Method):
    """A method that adds terms of its own to the labels' loss and classic distillation.

    ``ce * CE(z_s, y) + kd * T^2 KL(p_t || p_s) + own terms``. A subclass says its own terms.

    Args:
        pair: Student and teacher, of the same classes.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        temperature: T of the predictions.

    Raises:
        InputError: There is no teacher, or the classes differ.
    """

    def __init__(self, pair: Pair, ce: float, kd: float, temperature: float) -> None:
        super().__init__(pair)
        check_classes(pair)
        self.ce, self.kd, self.temperature = ce, kd, temperature

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The labels' loss, the predictions' and the method's own."""
        teacher = require_outputs(teacher)
        student: ModelOutput = self.student(batch.images)
        losses = {
            "ce": self.ce * losses_of_logits.ce(student.logits, batch.labels),
            "kd": self.kd * losses_of_logits.kd(student.logits, teacher.logits, self.temperature),
        }
        return StepOutput(losses | self.extra_losses(batch, student, teacher), student.logits)

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The method's own losses: named, already weighted scalars."""
        raise TypeError(f"{type(self).__name__} does not say what it adds to distillation")


class BranchedMethod(Method):
    """A method that hangs branches on the student's shallow stages while it learns.

    A subclass makes the branches, `dskd.methods.branches.Branch`, one for each of `supervised`.

    Args:
        pair: The student has two stages or more.
        supervise: Which shallow stages have a branch, from 1; None for all.

    Attributes:
        supervised: The stages that have a branch, from 0.
        branches: A branch for each.

    Raises:
        InputError: The student has no shallow stage, or ``supervise`` names none.
    """

    branches: nn.ModuleList

    def __init__(self, pair: Pair, supervise: list[int] | None) -> None:
        super().__init__(pair)
        self.supervised = shallow_stages(pair.student_spec, supervise)

    def branch_outputs(self, stages: tuple[Tensor, ...]) -> list[BranchOutput]:
        """What each branch makes of the student's stages."""
        return [
            branch(stages[stage])
            for stage, branch in zip(self.supervised, self.branches, strict=True)
        ]

    def classifier_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The student's logits, and each branch's under ``stage1``, ``stage2`` and so on."""
        student = self.student(images)
        branches = self.branch_outputs(student.stages)
        names = [f"stage{stage + 1}" for stage in self.supervised]
        shallow = {name: b.logits for name, b in zip(names, branches, strict=True)}
        return {"student": student.logits} | shallow


def shallow_stages(student: ModelSpec, supervise: list[int] | None) -> list[int]:
    """The stages before the student's last that have a branch, from 0.

    Args:
        student: The student's spec.
        supervise: Those that are wanted, from 1; None for all.

    Raises:
        InputError: The student has none, or a number names none.
    """
    depth = len(student.stages)
    if depth < 2:
        raise InputError(
            f"branches hang on the stages before the last, and the student has {depth}; "
            "name two or more with student.stages=[a,b]; the student's parts: "
            f"{', '.join(student.submodules)}"
        )
    if supervise is None:
        return list(range(depth - 1))
    if not supervise or max(supervise) > depth - 1 or len(set(supervise)) < len(supervise):
        raise InputError(
            f"supervise must name shallow stages from 1 to {depth - 1}, each once, got {supervise}"
        )
    return sorted(stage - 1 for stage in supervise)


def check_stages(pair: Pair) -> tuple[tuple[StageSpec, ...], tuple[StageSpec, ...]]:
    """The stages of student and teacher, of which each has one at least.

    Raises:
        InputError: One has none.
    """
    teacher = check_classes(pair)
    for what, spec in (("student", pair.student_spec), ("teacher", teacher)):
        if not spec.stages:
            raise InputError(
                f"this method needs a feature map of the {what}; name one or more with "
                f"{what}.stages=[a]; the {what}'s parts: {', '.join(spec.submodules)}"
            )
    return pair.student_spec.stages, teacher.stages


def check_pooled(pair: Pair) -> tuple[int, int]:
    """The lengths of the pooled vectors of student and teacher.

    Raises:
        InputError: One has no pooled vector.
    """
    teacher = check_classes(pair)
    lengths = []
    for what, spec in (("student", pair.student_spec), ("teacher", teacher)):
        if spec.pooled is None:
            raise InputError(
                f"this method needs the vector that the {what}'s classifier sees, and the {what} "
                "does not end in a linear layer; take another method"
            )
        lengths.append(spec.pooled)
    return lengths[0], lengths[1]


def check_classifier(pair: Pair) -> nn.Linear:
    """The teacher's classifier, frozen, once it is known to make its logits of its pooled vector.

    Raises:
        InputError: The teacher's logits are not those of a linear layer.
    """
    teacher, classifier = check_classes(pair), pair.teacher_classifier
    if classifier is None or not teacher.linear_logits:
        raise InputError(
            "this method uses the teacher's classifier again, and the teacher's logits are not "
            "those of a linear layer; take another method"
        )
    return classifier.requires_grad_(False)


def at_same_depth(depth: int, teacher_depth: int) -> list[int]:
    """For each of the student's stages the teacher's at the same relative depth, from 0.

    ``ceil(l L_t / L) - 1`` for ``l = 1 .. L``.

    Example:
        >>> at_same_depth(3, 3), at_same_depth(3, 5)
        ([0, 1, 2], [1, 3, 4])
    """
    return [math.ceil((stage + 1) * teacher_depth / depth) - 1 for stage in range(depth)]


RAMPED = "method.warmup changes a weight in every epoch, and torch would compile each anew"
"""Why a method with a `ramp` is not compiled."""


def ramp(epoch: int, warmup: float) -> float:
    """How far a weight has risen in an epoch: linearly to 1 over the first ``warmup`` epochs.

    Args:
        epoch: From 0.
        warmup: Epochs; 0 for the whole weight from the beginning.

    Example:
        >>> [ramp(epoch, 4) for epoch in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min((epoch + 1) / warmup, 1.0) if warmup else 1.0
