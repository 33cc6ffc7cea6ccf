"""Weighted transformed teacher matching: the temperature stands on the teacher's side only."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.checks import check_flag, check_same_shape, check_temperature
from dskd.losses.precision import in_full_precision
from dskd.methods.base import LogitMethod
from dskd.methods.contracts import Pair
from dskd.settings import Positive, Weight, checked


@in_full_precision
def wttm_loss(
    student_logits: Tensor, teacher_logits: Tensor, gamma: float = 0.1, weighted: bool = True
) -> Tensor:
    """Weighted transformed teacher matching: ``mean_b U_b KL(P_b || q_b)``.

    ``p`` and ``q`` are the softmax of the teacher's and the student's logits at temperature 1,
    ``U = sum_c p_c^gamma``, and ``P = p^gamma / U`` is the transformed teacher: its softmax at
    temperature ``1 / gamma``. For gamma below 1, ``U`` lies between 1 (a certain teacher) and
    ``K^(1 - gamma)`` (an unsure one), so the student learns most from the smoothest targets. There
    is no factor ``T^2``.

    Source: Zheng, Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024,
    arXiv 2402.11148: TTM is equation 2, WTTM is the objective of section 4. The paper and the
    authors' code agree. The code takes powers of a softmax that may have become 0; here all is
    computed with logarithms: *our choice*.

    Args:
        student_logits: ``[B, K]``.
        teacher_logits: ``[B, K]``.
        gamma: The exponent, above 0; 1 divided by the temperature.
        weighted: Whether U weights the images (WTTM); without it all count the same (TTM).

    Raises:
        InputError: The exponent is not above 0, or the shapes differ.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> round(wttm_loss(logits, 4 * logits, gamma=0.25).item(), 6)
        0.0
    """
    check_same_shape(student_logits, teacher_logits, "logits [B, K]")
    check_temperature(gamma, "gamma")
    check_flag("weighted", weighted)
    powers = gamma * F.log_softmax(teacher_logits, dim=1)
    log_sums = powers.logsumexp(1, keepdim=True)
    divergence = F.kl_div(
        F.log_softmax(student_logits, dim=1), powers - log_sums, log_target=True, reduction="none"
    ).sum(1)
    return (log_sums[:, 0].exp() * divergence if weighted else divergence).mean()


class WTTM(LogitMethod):
    """A temperature for the teacher alone: ``ce * CE + kd * mean_b U_b KL(P_b || q_b)``.

    ``P`` is the teacher's softmax at temperature ``1 / gamma``, ``q`` the student's at temperature
    1, and ``U = sum_c p_c^gamma`` weights the images by how unsure the teacher is. See
    `dskd.losses.wttm`. With ``weighted=false`` the method is TTM.

    Source: Zheng, Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024,
    arXiv 2402.11148, section 4. The presets are for resnet32x4-resnet8x4, from table 8 of its
    appendix, which has other values for each pair (exponents from 0.1 to 0.4; weights from 0.6 to
    16 for WTTM and from 7 to 101 for TTM). On ImageNet the exponents are 0.7 and 0.8.

    Args:
        pair: Student and teacher, of the same classes.
        ce: Weight of the labels.
        kd: Weight of the transformed teacher, the beta of the paper.
        gamma: The exponent; 1 divided by the teacher's temperature.
        weighted: Whether U weights the images.

    Raises:
        InputError: A setting is out of range, or the classes differ.
    """

    presets: ClassVar = {
        "literature": {"ce": 1.0, "kd": 3.0, "gamma": 0.1},
        "ttm": {"ce": 1.0, "kd": 100.0, "gamma": 0.1, "weighted": False},
    }

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        gamma: Positive = 0.1,
        weighted: bool = True,
    ) -> None:
        super().__init__(pair, ce, kd, temperature=1 / gamma)
        self.gamma, self.weighted = gamma, weighted

    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        """The divergence from the transformed teacher."""
        loss = wttm_loss(student_logits, teacher_logits, self.gamma, self.weighted)
        return {"wttm": self.kd * loss}
