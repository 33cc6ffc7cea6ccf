"""Normalised knowledge distillation: the other classes as a distribution of their own."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.checks import check_labels, check_number, check_temperature
from dskd.losses.logits import Reduction, check_logits, check_reduction, other_classes
from dskd.losses.precision import in_full_precision
from dskd.methods.base import TARGET_SPLIT, LogitMethod
from dskd.methods.checks import idle_with_two_classes
from dskd.methods.contracts import Pair
from dskd.settings import Positive, Weight, checked


@in_full_precision
def nkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    gamma: float = 3.5,
    temperature: float = 3.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Normalised KD: ``-p_y log q_y - gamma T^2 sum_{c != y} P_c log Q_c``.

    ``p`` and ``q`` are the softmax of the teacher's and the student's logits at temperature 1.
    ``P`` and ``Q`` are their softmax at T over the classes other than the label, so both sum to 1.
    Both parts are cross-entropies: for the teacher's own logits the loss is not 0.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, From Knowledge Distillation to Self-Knowledge
    Distillation, ICCV 2023, arXiv 2303.13005, its loss L_nkd; the authors' code agrees.

    Args:
        student_logits: ``[B, K]``.
        teacher_logits: ``[B, K]``.
        labels: int64, ``[B]``.
        gamma: Weight of the other classes.
        temperature: T of the other classes, above 0.
        reduction: ``mean`` over the batch, or ``none`` for one value per image.

    Raises:
        InputError: The temperature is not above 0, the shapes do not fit, or, on the CPU, a label
            is not one of the classes.

    Example:
        >>> import torch
        >>> round(nkd_loss(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([0])).item(), 4)
        22.2003
    """
    check_temperature(temperature)
    check_number("gamma", gamma)
    check_logits(student_logits, teacher_logits, classes=2)
    check_labels(labels, student_logits)
    check_reduction(reduction)
    label = labels[:, None]
    confidence = F.softmax(teacher_logits, dim=1).gather(1, label)[:, 0]
    target = -confidence * F.log_softmax(student_logits, dim=1).gather(1, label)[:, 0]
    p = F.softmax(other_classes(teacher_logits / temperature, labels), dim=1)
    log_q = F.log_softmax(other_classes(student_logits / temperature, labels), dim=1)
    per_sample = target - gamma * temperature**2 * (p * log_q).sum(1)
    return per_sample.mean() if reduction == "mean" else per_sample


class NKD(LogitMethod):
    """The other classes as a distribution: ``ce * CE - kd * (p_y log q_y + gamma T^2 P log Q)``.

    The first part asks for the label as strongly as the teacher believes in it. The second compares
    the softmax of student and teacher over all other classes. See `dskd.losses.nkd`.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, From Knowledge Distillation to Self-Knowledge
    Distillation, ICCV 2023, arXiv 2303.13005. Gamma and T are those of the authors' code for
    CIFAR-100 (ResNet34-ResNet18); on ImageNet they are 1.5 and 1. The paper's USKD, which has no
    teacher, is another method and not part of this one.

    Args:
        pair: Student and teacher, of the same classes.
        temperature: T of the other classes; the label's part is at temperature 1.
        ce: Weight of the labels.
        kd: Weight of the two parts together.
        gamma: Weight of the other classes. It has no effect with two classes, of which one is not
            the label; a line in the log says so.

    Raises:
        InputError: A setting is out of range, or the classes differ.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 1.0, "gamma": 3.5, "temperature": 3.0}}

    hard_labels = TARGET_SPLIT

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        temperature: Positive = 3.0,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        gamma: Weight = 3.5,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        self.gamma = gamma
        if kd and gamma:
            why = "compares the classes other than the label, and there is one"
            self.warnings = idle_with_two_classes(pair, "nkd", "gamma", why)

    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        """The loss of the label and of the other classes."""
        settings = self.gamma, self.temperature
        return {"nkd": self.kd * nkd_loss(student_logits, teacher_logits, batch.labels, *settings)}
