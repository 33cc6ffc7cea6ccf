"""The base classes of methods: from a batch and the teacher's output to the losses of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.losses import logits as logit_losses
from dskd.methods.branches import Branch, BranchOutput
from dskd.methods.checks import check_classes, shallow_stages
from dskd.methods.contracts import (
    Pair,
    StepOutput,
    TeacherEpochs,
    TeacherNeeds,
    require_outputs,
)
from dskd.models.output import ModelOutput

LearnsFrom = Literal[
    "labels", "logits", "feature maps", "relations", "classifier", "shallow stages"
]
"""The kinds of methods, as the table in README.md groups them."""


class Method(nn.Module):
    """A way to train a student. A subclass is a method; its keyword arguments are its settings.

    The constructor takes a `Pair` and keyword-only settings; `dskd.settings.checked` validates
    them by their annotations. The file ``methods/NAME.py`` with a class of the same name, in any
    capitals, is all that it takes to register a method.

    Attributes:
        classes: Number of classes K.
        needs: Which teacher outputs it reads. The teacher does not run if this is empty.
        needs_teacher: Whether it needs a teacher at all.
        distributed: Whether several processes can train it together (see
            `dskd.runtime.distributed`).
        static_graph: Whether every step uses the same parameters in the same order, so that
            DistributedDataParallel may fix its graph.
        hard_labels: Why it needs one class for each image, and so cannot learn from mixed images
            (``train.mixup``) or from images without labels (``data.unlabelled``); empty if it can.
            It reads ``batch.labels`` then; cross-entropies read ``batch.targets``.
        remembers_images: Whether it remembers something of each image, and so reads
            ``batch.indices`` and `Pair.labels`.
        uncompiled: Why torch cannot compile it (``train.compile``); empty if it can.
        prediction_weights: Settings that weight the teacher's predictions. They become 0 for a
            teacher of other classes, if `reads_classes` is False then.
        presets: Named sets of settings, for ``method.preset``. ``literature`` holds the weights
            of the publication; the defaults have ``ce = kd = 1`` instead.
        warnings: What to know about this pair with these settings, in a line each for the log.
        learns_from: What the student mainly learns from; the documentation groups methods by it.
    """

    needs: TeacherNeeds = TeacherNeeds()
    needs_teacher: ClassVar[bool] = True
    distributed: ClassVar[bool] = True
    static_graph: ClassVar[bool] = True
    hard_labels: str = ""
    remembers_images: ClassVar[bool] = False
    uncompiled: str = ""
    warnings: tuple[str, ...] = ()
    prediction_weights: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    learns_from: ClassVar[LearnsFrom] = "labels"

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.student = pair.student
        self.classes = pair.student_spec.classes

    @property
    def learns_labels(self) -> bool:
        """Whether a cross-entropy with the labels has a weight above 0."""
        return bool(getattr(self, "ce", 0.0))

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of a batch.

        Args:
            batch: The images and labels.
            teacher: The teacher's output for the same images; None without a teacher.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")

    @classmethod
    def reads_classes(cls, settings: Mapping[str, Any]) -> bool:
        """Whether the student learns the teacher's classes: by its logits or its classifier.

        A method that compares features alone can learn from a teacher of other classes.

        Args:
            settings: The method's settings.
        """
        return cls.needs_teacher

    @classmethod
    def prepares(cls, settings: Mapping[str, Any]) -> bool:
        """Whether `prepare` has work to do with these settings."""
        return cls.prepare is not Method.prepare

    def prepare(self, teacher_epochs: TeacherEpochs) -> None:
        """Trains parts that must be ready before the student trains; most methods have none.

        It runs once, at the beginning of a run. Its random state depends on the run's seed alone.

        Args:
            teacher_epochs: Takes a number of epochs and gives their batches, each with the
                teacher's output. Their views differ from those of the run's own epochs.
        """

    def classifier_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The logits ``[B, K]`` of every classifier that can be evaluated, by name.

        The student's own are called ``student``.
        """
        return {"student": self.student(images).logits}

    def deployed(self) -> nn.Module:
        """The trained module to ship: the plain student, with its own keys.

        A method whose student needs more than itself (simkd) returns a larger module, which takes
        the same normalised images. `deploy_config` and `assemble` then say how to build it. A
        method that merges a part of its own into the student's weights (norm) returns a copy.
        """
        return self.student.module

    def deployed_view(self) -> nn.Module:
        """`deployed` for reading now: its weights may be shared with the method.

        The moving average reads it in every step, so it should not copy the student.
        """
        return self.deployed()

    def deploy_config(self) -> dict[str, Any]:
        """The plain values that `assemble` needs to build the deployed module, for a file."""
        return {}

    @classmethod
    def assemble(cls, student: nn.Module, deploy_config: Mapping[str, Any]) -> nn.Module:
        """Builds the deployed module around a plain student; the weights are loaded later.

        Args:
            student: As its name and options build it.
            deploy_config: The values of `deploy_config`, read from a file and so not yet checked.

        Raises:
            InputError: ``deploy_config`` does not fit.
        """
        return student

    def exit_branches(self) -> dict[int, Branch]:
        """The branches that can predict in place of the student (``train.exits``).

        Returns:
            By the number of their stage, from 0, shallow to deep; empty if the method has none.
        """
        return {}

    def auxiliary_state_dict(self) -> dict[str, Tensor]:
        """The state of the parts that are trained with the student and never deployed."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("student.")
        }


class LogitMethod(Method):
    """A method that learns from labels and the teacher's logits alone: ``ce * CE(z_s, y) + L``.

    A subclass defines L, in `logit_losses`.

    Args:
        pair: Student and teacher, of the same classes.
        ce: Weight of the labels.
        kd: Weight of the teacher's logits; `logit_losses` applies it.
        temperature: T of the logits, for `logit_losses`.

    Raises:
        InputError: There is no teacher, or the classes differ.
    """

    needs = TeacherNeeds(logits=True)
    learns_from: ClassVar[LearnsFrom] = "logits"

    def __init__(self, pair: Pair, ce: float, kd: float, temperature: float = 1.0) -> None:
        super().__init__(pair)
        check_classes(pair)
        self.ce, self.kd, self.temperature = ce, kd, temperature

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The loss of the labels and the losses of the teacher's logits."""
        logits = self.student(batch.images).logits
        losses = self.logit_losses(batch, logits, require_outputs(teacher).logits)
        by_labels = self.ce * logit_losses.ce(logits, batch.targets)
        return StepOutput({"ce": by_labels} | losses, logits)

    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        """The losses between the logits: named, already weighted scalars."""
        raise TypeError(f"{type(self).__name__} does not define logit_losses")


class FeatureMethod(Method):
    """A method that adds its own losses to labels and classic distillation.

    ``ce * CE(z_s, y) + kd * T^2 KL(p_t || p_s) + own losses``. A subclass defines its own losses,
    in `extra_losses`. It gets the student's pooled vector as it is before a dropout.

    Args:
        pair: Student and teacher, of the same classes.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        temperature: T of the predictions.

    Raises:
        InputError: There is no teacher, or the classes differ.
    """

    prediction_weights: ClassVar[tuple[str, ...]] = ("kd",)
    learns_from: ClassVar[LearnsFrom] = "feature maps"

    def __init__(self, pair: Pair, ce: float, kd: float, temperature: float) -> None:
        super().__init__(pair)
        check_classes(pair)
        self.ce, self.kd, self.temperature = ce, kd, temperature
        self.drops_pooled = pair.student_spec.drops_pooled

    @classmethod
    def reads_classes(cls, settings: Mapping[str, Any]) -> bool:
        """By the weight of the teacher's predictions, or if it uses the teacher's classifier."""
        return cls.learns_from == "classifier" or bool(settings.get("kd", True))

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The losses of the labels, of the predictions and of the method itself."""
        teacher = require_outputs(teacher)
        student: ModelOutput = self.student(batch.images)
        losses = self.distillation_losses(batch, student.logits, teacher.logits)
        features = student.before_dropout() if self.drops_pooled else student
        return StepOutput(losses | self.extra_losses(batch, features, teacher), student.logits)

    def distillation_losses(
        self, batch: Batch, logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        """The losses of the labels and of the teacher's predictions."""
        return {
            "ce": self.ce * logit_losses.ce(logits, batch.targets),
            "kd": self.kd * logit_losses.kd(logits, teacher_logits, self.temperature),
        }

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The method's own losses: named, already weighted scalars."""
        raise TypeError(f"{type(self).__name__} does not define extra_losses")


class BranchedMethod(Method):
    """A method that puts branches on the student's shallow stages during training.

    A subclass creates the branches, a `dskd.methods.branches.Branch` for each of `supervised`.

    Args:
        pair: The student has two stages or more.
        supervise: Which shallow stages get a branch, from 1; None for all.

    Attributes:
        supervised: The stages that have a branch, from 0.
        branches: A branch for each of them.

    Raises:
        InputError: The student has no shallow stage, or ``supervise`` names one that is not there.
    """

    branches: nn.ModuleList
    learns_from: ClassVar[LearnsFrom] = "shallow stages"

    def __init__(self, pair: Pair, supervise: list[int] | None) -> None:
        super().__init__(pair)
        self.supervised = shallow_stages(pair.student_spec, supervise)

    def branch_outputs(self, stages: tuple[Tensor, ...]) -> list[BranchOutput]:
        """The output of each branch for the student's stages."""
        return [
            branch(stages[stage])
            for stage, branch in zip(self.supervised, self.branches, strict=True)
        ]

    def classifier_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The student's logits, and those of the branches as ``stage1``, ``stage2`` and so on."""
        student = self.student(images)
        branches = self.branch_outputs(student.stages)
        names = [f"stage{stage + 1}" for stage in self.supervised]
        shallow = {name: b.logits for name, b in zip(names, branches, strict=True)}
        return {"student": student.logits} | shallow

    def exit_branches(self) -> dict[int, Branch]:
        """Each branch that needs nothing but the map of its own stage."""
        pairs = zip(self.supervised, self.branches, strict=True)
        return {stage: branch for stage, branch in pairs if isinstance(branch, Branch)}


RAMPED = "method.warmup changes a weight in every epoch, and torch would compile each anew"
"""Why torch does not compile a method with a `ramp`."""


TARGET_SPLIT = "its loss treats the class of an image and the other classes separately"
"""Why a method with such a loss needs one class for each image."""


def ramp(epoch: int, warmup: float) -> float:
    """The share of its weight that a loss has in an epoch, rising linearly to 1.

    Args:
        epoch: From 0.
        warmup: The number of epochs until the whole weight; 0 for the whole weight from the start.

    Example:
        >>> [ramp(epoch, 4) for epoch in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min((epoch + 1) / warmup, 1.0) if warmup else 1.0


DECAYED = "method.decay_to changes weights in every epoch, and torch would compile each anew"
"""Why torch does not compile a method whose weights fall."""


def decayed(epoch: int, begin: float, end: float) -> float:
    """The share of its weight that a loss has in an epoch: 1, then half a cosine down to 0.

    Args:
        epoch: From 0.
        begin: Epochs after which the weight begins to fall.
        end: Epochs after which it is 0; 0 for a weight that never falls.

    Example:
        >>> [round(decayed(epoch, 2, 4), 2) for epoch in range(5)]
        [1.0, 1.0, 0.5, 0.0, 0.0]
    """
    if not end:
        return 1.0
    passed = min(max((epoch + 1 - begin) / (end - begin), 0.0), 1.0)
    return 0.5 * (1 + math.cos(math.pi * passed))
