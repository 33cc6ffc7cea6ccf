"""Logit standardisation: student and teacher compare z-scores of their logits."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.checks import check_choice, check_labels, check_number, check_same_shape
from dskd.losses.logits import dkd as dkd_loss
from dskd.losses.logits import kd as kd_loss
from dskd.losses.logits import standardized
from dskd.losses.precision import in_full_precision
from dskd.methods.base import RAMPED, TARGET_SPLIT, LogitMethod, ramp
from dskd.methods.checks import check_standardized
from dskd.methods.contracts import Pair
from dskd.methods.mlkd import mlkd_loss
from dskd.settings import Epochs, Positive, Weight, checked

Base = Literal["kd", "dkd", "mlkd"]
"""A loss whose logits are standardised."""


@in_full_precision
def lskd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    base: Base = "kd",
    temperature: float = 2.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Logit standardisation: ``L(Z(z_s), Z(z_t))`` with ``Z(z) = (z - mean(z)) / std(z)``.

    ``mean`` and ``std`` (unbiased) are over the classes of an image, for student and teacher alike.
    So the student learns the relations between the teacher's logits, whatever the scale of its own.
    L is the loss ``base`` at temperature T, with its factor ``T^2``:

    - ``kd``: classic distillation
    - ``dkd``: decoupled distillation, `dskd.losses.dkd`
    - ``mlkd``: multi-level distillation at T, 3, 5, 2 and 6, `dskd.losses.mlkd`. Its instance level
      alone is standardised.

    Source: Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024,
    arXiv 2403.01427, algorithm 1. The three base losses are those of the authors' code.

    Args:
        student_logits: ``[B, K]``.
        teacher_logits: ``[B, K]``.
        labels: int64, ``[B]``; read by ``dkd`` alone.
        base: The loss L.
        temperature: T, above 0.
        alpha: Weight of the label's part in ``dkd``.
        beta: Weight of the other classes' part in ``dkd``.

    Raises:
        InputError: ``base`` does not exist, the temperature is not above 0, the shapes do not fit,
            or, on the CPU, a label is not one of the classes.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 2.0, 4.0]])
        >>> round(lskd_loss(logits, 5 * logits - 1, torch.tensor([0])).item(), 6)
        0.0
    """
    check_choice("base loss", base, get_args(Base))
    check_number("alpha", alpha)
    check_number("beta", beta)
    check_same_shape(student_logits, teacher_logits, "logits [B, K]")
    check_labels(labels, student_logits)
    if base == "kd":
        return kd_loss(student_logits, teacher_logits, temperature, standardize=True)
    if base == "dkd":
        student, teacher = standardized(student_logits), standardized(teacher_logits)
        return dkd_loss(student, teacher, labels, alpha, beta, temperature)
    temperatures = (temperature, 3.0, 5.0, 2.0, 6.0)
    return mlkd_loss(student_logits, teacher_logits, temperatures, standardize=True)


class LSKD(LogitMethod):
    """Standardised logits: ``ce * CE(z_s, y) + kd * L(Z(z_s), Z(z_t))``, L by default KD.

    ``Z`` gives the logits of each image mean 0 and standard deviation 1, see `dskd.losses.lskd`.
    The labels see the student's logits as they are. With ``base=kd`` the loss is that of `kd` with
    ``standardize=true``, here with the temperature and the weights of the publication.

    Source: Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024,
    arXiv 2403.01427. The presets have the authors' weights for CIFAR-100: ``literature`` for KD,
    ``literature-dkd`` for DKD, whose weight rises over 20 of 240 epochs, and ``literature-mlkd``
    for MLKD, here in the paper's objective with one view (see `mlkd`). On standardised logits the
    temperature matters little, and a large weight makes up for the small loss.

    Args:
        pair: Student and teacher, of the same classes: three or more, as standardised logits of two
            differ by their sign alone. (``base=mlkd`` takes two; its instance level is idle then.)
        base: The loss L: ``kd``, ``dkd`` or ``mlkd``.
        temperature: T of the standardised logits.
        ce: Weight of the labels.
        kd: Weight of L.
        alpha: Weight of the label's part in ``dkd``.
        beta: Weight of the other classes' part in ``dkd``.
        warmup: Epochs over which the weight of L rises.

    Raises:
        InputError: A setting is out of range, the classes differ, or there are too few.
    """

    presets: ClassVar = {
        "literature": {"base": "kd", "ce": 0.1, "kd": 9.0},
        "literature-dkd": {
            "base": "dkd",
            "ce": 1.0,
            "kd": 9.0,
            "alpha": 1.0,
            "beta": 8.0,
            "warmup": 20.0,
        },
        "literature-mlkd": {"base": "mlkd", "ce": 0.1, "kd": 9.0},
    }

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        base: Base = "kd",
        temperature: Positive = 2.0,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        alpha: Weight = 1.0,
        beta: Weight = 8.0,
        warmup: Epochs = 0.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        if kd and base != "mlkd":  # two of the levels of mlkd are not standardised
            check_standardized(pair, "lskd", "take method.name=kd, or method.base=mlkd")
        self.base, self.alpha, self.beta, self.warmup = base, alpha, beta, warmup
        self.uncompiled = RAMPED if warmup else ""
        self.hard_labels = TARGET_SPLIT if base == "dkd" else ""

    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        """The loss of the standardised logits, with its weight in this epoch."""
        settings = self.base, self.temperature, self.alpha, self.beta
        # An image without a label gets one that no base reads; dkd is refused for such images.
        labels = batch.labels.clamp_min(0)
        loss = lskd_loss(student_logits, teacher_logits, labels, *settings)
        return {"lskd": self.kd * ramp(batch.epoch, self.warmup) * loss}
