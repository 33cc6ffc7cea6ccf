"""The findings of a check, as plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dskd.models.stage_table import Stage


@dataclass(frozen=True)
class SplitCounts:
    """The images of a split.

    Attributes:
        split: Its name.
        images: Number of images.
        per_class: Images of each class, by name.
    """

    split: str
    images: int
    per_class: dict[str, int]

    @property
    def empty_classes(self) -> list[str]:
        """The classes without an image."""
        return [name for name, count in self.per_class.items() if not count]

    def extreme(self, most: bool) -> tuple[str, int]:
        """The class with the most or the fewest images, and their number."""
        chosen = max if most else min
        return chosen(self.per_class.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class SharedImages:
    """Images of an evaluation split that are training images or in another evaluation split, too.

    Attributes:
        split: The evaluation split.
        other: The other split.
        images: How many were found.
        compared: How many images of ``split`` were compared.
        other_compared: How many images of ``other`` they were compared with.
        examples: Names of some pairs; numbers where images have no names.
    """

    split: str
    other: str
    images: int
    compared: int
    other_compared: int
    examples: list[tuple[str, str]]


@dataclass(frozen=True)
class DataFindings:
    """What is in the data.

    Attributes:
        name: Of the data set, or of the folder or file with the user's own images.
        shape: Channels, height and width of an image.
        splits: Of each split with labels.
        unlabelled: Images without labels.
        bad_files: Image files that cannot be read, each with the reason.
        skip_bad: Whether the run leaves them out.
        shared: Images in two splits.
        decoded: Images that were decoded to find bad files; 0 if all were.
    """

    name: str
    shape: tuple[int, int, int]
    splits: list[SplitCounts]
    unlabelled: int
    bad_files: list[str]
    skip_bad: bool
    shared: list[SharedImages]
    decoded: int = 0


@dataclass(frozen=True)
class TeacherFindings:
    """The teacher on a sample of the test split.

    Attributes:
        name: Of the teacher.
        accuracy: In percent; None if it was not evaluated.
        low: Lower end of the 95 % confidence interval of the accuracy (Clopper and Pearson).
        high: Its upper end.
        images: Images of the sample.
        class_order: ``as here``, ``another``, or ``unknown``.
        note: Why it was not evaluated; empty if it was.
    """

    name: str
    accuracy: float | None = None
    low: float = 0.0
    high: float = 0.0
    images: int = 0
    class_order: str = "unknown"
    note: str = ""


@dataclass(frozen=True)
class LossFindings:
    """A loss term of the method for one batch, before the first step.

    Attributes:
        name: Of the term.
        value: Of the term, with its weight.
        gradients: Norm of its gradient at each stage of the student and at the logits, by name.
    """

    name: str
    value: float
    gradients: dict[str, float]


@dataclass(frozen=True)
class StepFindings:
    """A few training steps, with a copy of the model that is trained.

    Attributes:
        trained: ``student`` or ``teacher``.
        batch_size: Images of a step. It is smaller than the run's if a step would take too long.
        losses: The loss of each step.
        seconds: Time of an average step.
        loading: Share of the time that went into waiting for images.
        teacher: Share of the time that went into the teacher's outputs.
        fixed_bytes: Memory of weights, gradients and optimizer state.
        saved_bytes: Memory that the forward pass of a batch of the run saves for the backward pass.
        state_bytes: Size of a checkpoint.
        model_bytes: Size of the saved model.
        evaluation_seconds: Time to evaluate an image.
        problem: Why the steps failed; empty if they did not.
        waiting: Share of the time that threads waited for a core, on a CPU under Linux.
    """

    trained: str
    batch_size: int
    losses: list[float]
    seconds: float = 0.0
    loading: float = 0.0
    teacher: float = 0.0
    fixed_bytes: int = 0
    saved_bytes: int = 0
    state_bytes: int = 0
    model_bytes: int = 0
    evaluation_seconds: float = 0.0
    problem: str = ""
    waiting: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Training images a second."""
        return self.batch_size / self.seconds if self.seconds else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """The shares of the time: loading, teacher, student."""
        if not self.seconds:
            return {}
        rest = max(0.0, 1.0 - self.loading - self.teacher)
        return {"loading": self.loading, "teacher": self.teacher, self.trained_part: rest}

    @property
    def trained_part(self) -> str:
        """The name of the time that goes into the trained model itself."""
        return "student" if self.trained == "student" else "teacher's training"

    @property
    def bottleneck(self) -> str:
        """The part that takes the largest share of the time; empty without a step."""
        return max(self.shares, key=self.shares.__getitem__) if self.shares else ""


@dataclass(frozen=True)
class CostFindings:
    """What the whole run needs.

    Attributes:
        seconds: Expected time of each part of the run, by name, if other work takes the processor
            cores as it does now.
        free_core_seconds: The same without the time in which the steps waited for a core.
        memory: Bytes of the training.
        memory_free: Bytes that are available on the device.
        disk: Bytes of the checkpoints and models, and of the cache of teacher outputs, by name.
        disk_free: Bytes that are free where each of them goes, by name.
    """

    seconds: dict[str, float]
    free_core_seconds: dict[str, float]
    memory: int
    memory_free: int
    disk: dict[str, int]
    disk_free: dict[str, int]

    @property
    def total_seconds(self) -> float:
        """The expected time of the run, with other work as it is now."""
        return sum(self.seconds.values())

    @property
    def total_free_core_seconds(self) -> float:
        """The expected time of the run without waiting for a core."""
        return sum(self.free_core_seconds.values())


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        reasons: Why the run should not be started; empty if it can be.
        warnings: What to look at, although the run can be started.
        device: That trains.
        data: What is in the data.
        teacher: The teacher; None without one.
        stages: The table of stages of ``student`` and ``teacher``.
        losses: The loss terms of the method.
        steps: A few steps of the student, and of a teacher that is trained first.
        cost: What the run needs; None if no step could be taken.
        seconds: Time of the check.
    """

    reasons: list[str]
    warnings: list[str]
    device: str
    data: DataFindings
    teacher: TeacherFindings | None
    stages: dict[str, list[Stage]]
    losses: list[LossFindings]
    steps: list[StepFindings]
    cost: CostFindings | None
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the run can be started."""
        return not self.reasons

    def plain(self) -> dict[str, Any]:
        """The findings as plain values, for JSON. A number that is not finite becomes None."""
        values = {"ok": self.ok, **asdict(self)}
        for step, found in zip(values["steps"], self.steps, strict=True):
            step |= {
                "images_per_second": found.images_per_second,
                "shares": found.shares,
                "bottleneck": found.bottleneck,
            }
        finite: dict[str, Any] = _finite(values)
        return finite


def _finite(value: Any) -> Any:
    """Nested plain values with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
