"""Classic knowledge distillation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.logits import kd as kd_loss
from dskd.methods.base import LogitMethod
from dskd.methods.checks import check_standardized
from dskd.methods.contracts import Pair
from dskd.settings import Positive, Weight, checked


class KD(LogitMethod):
    """The teacher's softened predictions: ``ce * CE(z_s, y) + kd * T^2 KL(p_t || p_s)``.

    Source: Hinton, Vinyals, Dean, 2015, arXiv 1503.02531, section 2. The preset ``literature``
    has the weights of CRD's repository and of later comparisons on CIFAR-100.

    Args:
        pair: Student and teacher, of the same classes.
        temperature: T; 4 is common on CIFAR-100.
        ce: Weight of the labels.
        kd: Weight of the teacher.
        standardize: Standardise the logits of both first (Sun et al., CVPR 2024). This needs three
            classes or more.

    Raises:
        InputError: A setting is out of range, the classes differ, or logits of two classes would be
            standardised.
    """

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
        super().__init__(pair, ce, kd, temperature)
        if standardize and kd:
            check_standardized(pair, "method.standardize=true", "drop it")
        self.standardize = standardize

    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        """The divergence from the teacher's predictions."""
        loss = kd_loss(student_logits, teacher_logits, self.temperature, self.standardize)
        return {"kd": self.kd * loss}
