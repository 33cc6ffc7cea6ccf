"""Decoupled knowledge distillation: the label and the other classes get their own weights."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.logits import dkd as dkd_loss
from dskd.methods.base import RAMPED, TARGET_SPLIT, LogitMethod, ramp
from dskd.methods.checks import idle_with_two_classes
from dskd.methods.contracts import Pair
from dskd.settings import Epochs, Positive, Weight, checked


class DKD(LogitMethod):
    """KD in two parts: ``ce * CE + kd * (alpha * TCKD + beta * NCKD)``.

    TCKD is the KL divergence between teacher and student for two outcomes: the label, and all other
    classes together. NCKD is their KL divergence over the other classes alone. In plain KD the
    weight of NCKD is the teacher's probability of all other classes. See `dskd.losses.dkd`.

    Source: Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022,
    arXiv 2203.08679, equation 7. The paper uses another beta for each pair (8 for
    resnet32x4-resnet8x4), and its weight rises over the first 20 of 240 epochs. Here ``warmup``
    sets this: 20 in ``literature``, and 0 by default, so that short runs learn from the term too.

    Args:
        pair: Student and teacher, of the same classes.
        temperature: T.
        ce: Weight of the labels.
        kd: Weight of the two parts together.
        alpha: Weight of TCKD.
        beta: Weight of NCKD. It has no effect with two classes, of which one is not the label; a
            line in the log says so.
        warmup: Epochs over which the weight of the two parts rises.

    Raises:
        InputError: A setting is out of range, or the classes differ.
    """

    presets: ClassVar = {
        "literature": {"ce": 1.0, "kd": 1.0, "alpha": 1.0, "beta": 8.0, "warmup": 20.0}
    }

    hard_labels = TARGET_SPLIT

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
        super().__init__(pair, ce, kd, temperature)
        self.alpha, self.beta, self.warmup = alpha, beta, warmup
        self.uncompiled = RAMPED if warmup else ""
        if kd and beta:
            why = "compares the classes other than the label, and there is one"
            self.warnings = idle_with_two_classes(pair, "dkd", "beta", why)

    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        """The two parts of the divergence, with their weight in this epoch."""
        settings = self.alpha, self.beta, self.temperature
        loss = dkd_loss(student_logits, teacher_logits, batch.labels, *settings)
        return {"dkd": self.kd * ramp(batch.epoch, self.warmup) * loss}
