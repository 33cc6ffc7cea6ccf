"""Decoupled knowledge distillation."""

from __future__ import annotations

from typing import ClassVar

from dskd.data.loader import Batch
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.logits import dkd
from dskd.methods.base import (
    RAMPED,
    Method,
    Pair,
    StepOutput,
    TeacherNeeds,
    check_classes,
    ramp,
    require_outputs,
)
from dskd.models.output import ModelOutput
from dskd.settings import Epochs, Positive, Weight, checked


class DKD(Method):
    """KD taken apart: ``ce * CE + kd * (alpha * TCKD + beta * NCKD)``.

    TCKD is the divergence of the label's probability against all the rest, NCKD that among the
    rest; plain KD ties the weight of the second to how unsure the teacher is. See
    `dskd.losses.dkd`.

    Source: Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022,
    arXiv 2203.08679, equation 7. The paper takes another beta for each pair (8 for
    resnet32x4-resnet8x4) and lets the term rise over 20 of 240 epochs: ``warmup``, of which
    ``literature`` takes 20 and the default none, so that short runs learn from it at all.

    Args:
        pair: Student and teacher, of the same classes.
        temperature: T.
        ce: Weight of the labels.
        kd: Weight of the two terms together.
        alpha: Weight of TCKD.
        beta: Weight of NCKD.
        warmup: Epochs over which the two terms rise to their weight.

    Raises:
        InputError: A setting is out of range, or the classes differ.
    """

    needs = TeacherNeeds(logits=True)
    presets: ClassVar = {
        "literature": {"ce": 1.0, "kd": 1.0, "alpha": 1.0, "beta": 8.0, "warmup": 20.0}
    }

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        temperature: Positive = 4.0,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        alpha: Weight = 1.0,
        beta: Weight = 8.0,
        warmup: Epochs = 0.0,
    ) -> None:
        super().__init__(pair)
        check_classes(pair)
        self.temperature, self.ce, self.kd = temperature, ce, kd
        self.alpha, self.beta, self.warmup = alpha, beta, warmup
        self.uncompiled = RAMPED if warmup else ""

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The labels' loss and the two parts of the teacher's."""
        logits = self.student(batch.images).logits
        decoupled = dkd(
            logits,
            require_outputs(teacher).logits,
            batch.labels,
            self.alpha,
            self.beta,
            self.temperature,
        )
        losses = {
            "ce": self.ce * cross_entropy(logits, batch.labels),
            "dkd": self.kd * ramp(batch.epoch, self.warmup) * decoupled,
        }
        return StepOutput(losses, logits)
