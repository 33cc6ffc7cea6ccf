"""Classic knowledge distillation."""

from __future__ import annotations

from typing import ClassVar

from dskd.data.loader import Batch
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.logits import kd as distillation
from dskd.methods.base import Method, Pair, StepOutput, TeacherNeeds, check_classes, require_outputs
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


class KD(Method):
    """The teacher's softened predictions: ``ce * CE(z_s, y) + kd * T^2 KL(p_t || p_s)``.

    Source: Hinton, Vinyals, Dean, 2015, arXiv 1503.02531, section 2.

    Args:
        pair: Student and teacher, of the same classes.
        temperature: T; 4 is what the field takes on CIFAR-100.
        ce: Weight of the labels.
        kd: Weight of the teacher.
        standardize: Standardise the logits of both first (Sun et al., CVPR 2024).

    Raises:
        InputError: A setting is out of range, or the classes differ.
    """

    needs = TeacherNeeds(logits=True)
    # Of the field's CIFAR-100 comparisons (CRD's repository and those after it).
    presets: ClassVar = {"literature": {"ce": 0.1, "kd": 0.9}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        temperature: Positive = 4.0,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        standardize: bool = False,
    ) -> None:
        super().__init__(pair)
        check_classes(pair)
        self.temperature, self.standardize = temperature, standardize
        self.ce, self.kd = ce, kd

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The labels' loss and the teacher's."""
        logits = self.student(batch.images).logits
        by_teacher = distillation(
            logits, require_outputs(teacher).logits, self.temperature, self.standardize
        )
        losses = {
            "ce": self.ce * cross_entropy(logits, batch.labels),
            "kd": self.kd * by_teacher,
        }
        return StepOutput(losses, logits)
