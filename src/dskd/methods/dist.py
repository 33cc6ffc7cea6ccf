"""DIST: the relations within predictions instead of their values."""

from __future__ import annotations

from typing import ClassVar

from dskd.data.loader import Batch
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.logits import dist
from dskd.methods.base import Method, Pair, StepOutput, TeacherNeeds, check_classes, require_outputs
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


class DIST(Method):
    """Relations: ``ce * CE + kd * T^2 (beta (1 - r_b) + gamma (1 - r_k))``.

    ``r_b`` is Pearson's correlation of the two sides' probabilities within each image, ``r_k``
    within each class across the batch. See `dskd.losses.dist`.

    Source: Huang, You, Wang, Qian, Xu, Knowledge Distillation from A Stronger Teacher, NeurIPS
    2022, arXiv 2205.10536, equations 8 to 10; the weights (1 for the labels, 2 for each relation)
    and T = 4 are the paper's for CIFAR-100.

    Args:
        pair: Student and teacher, of the same classes.
        temperature: T.
        ce: Weight of the labels.
        kd: Weight of the two relations together.
        beta: Weight of the relation within images.
        gamma: Weight of the relation within classes.

    Raises:
        InputError: A setting is out of range, or the classes differ.
    """

    needs = TeacherNeeds(logits=True)
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
        super().__init__(pair)
        check_classes(pair)
        self.temperature, self.ce, self.kd = temperature, ce, kd
        self.beta, self.gamma = beta, gamma

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """The labels' loss and that of the two relations."""
        logits = self.student(batch.images).logits
        relations = dist(
            logits, require_outputs(teacher).logits, self.beta, self.gamma, self.temperature
        )
        losses = {
            "ce": self.ce * cross_entropy(logits, batch.labels),
            "dist": self.kd * relations,
        }
        return StepOutput(losses, logits)
