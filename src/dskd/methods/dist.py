"""DIST: the student learns the relations within predictions, not their values."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.logits import dist as dist_loss
from dskd.methods.base import LogitMethod
from dskd.methods.checks import idle_with_two_classes
from dskd.methods.contracts import Pair
from dskd.settings import Positive, Weight, checked


class DIST(LogitMethod):
    """Relations: ``ce * CE + kd * T^2 (beta (1 - r_b) + gamma (1 - r_k))``.

    ``r_b`` is Pearson's correlation of the probabilities of student and teacher within each image,
    ``r_k`` within each class across the batch. See `dskd.losses.dist`.

    Source: Huang, You, Wang, Qian, Xu, Knowledge Distillation from A Stronger Teacher, NeurIPS
    2022, arXiv 2205.10536, equations 8 to 10. The weights (1 for the labels, 2 for each relation)
    and T = 4 are the paper's for CIFAR-100.

    Args:
        pair: Student and teacher, of the same classes.
        temperature: T.
        ce: Weight of the labels.
        kd: Weight of the two relations together.
        beta: Weight of the relation within images. It has no effect with two classes, whose
            correlation is 1 or -1; a line in the log says so.
        gamma: Weight of the relation within classes.

    Raises:
        InputError: A setting is out of range, or the classes differ.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 1.0, "beta": 2.0, "gamma": 2.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        temperature: Positive = 4.0,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        beta: Weight = 2.0,
        gamma: Weight = 2.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        self.beta, self.gamma = beta, gamma
        if kd and beta:
            why = "correlates two numbers, whose correlation is 1 or -1"
            self.warnings = idle_with_two_classes(pair, "dist", "beta", why)

    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        """The loss of the two relations."""
        loss = dist_loss(student_logits, teacher_logits, self.beta, self.gamma, self.temperature)
        return {"dist": self.kd * loss}
