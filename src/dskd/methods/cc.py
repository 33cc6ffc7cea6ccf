"""Correlation congruence: the student's images relate to each other as the teacher's do."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.losses.checks import check_choice, check_number, check_same_batch, check_same_shape
from dskd.losses.precision import in_full_precision
from dskd.losses.vectors import unit
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_pooled
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.settings import Count, Positive, Weight, checked

Congruence = Literal["neighbours", "gaussian", "bilinear"]

LARGEST_GAMMA, LARGEST_ORDER = 100, 100
"""Bounds within which every factor of the series is a number."""


@in_full_precision
def cc_loss(
    student: Tensor,
    teacher: Tensor,
    form: Congruence = "neighbours",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """Correlation congruence: ``mean_i sum_d |s_i - t_i|_d |s_i+1 - t_i+1|_d``, or the paper's.

    - ``neighbours``: the formula above, over neighbours i, i + 1 in the batch; 0 for a single
      image. It comes from CRD's repository, which has it from the paper's author. Published weights
      belong to it, though it is not the paper's equation.
    - ``gaussian``, ``bilinear``: the paper's ``||K(s) - K(t)||_F^2 / B^2``. K is the kernel of each
      two vectors x, y, scaled to unit length: ``exp(-2 gamma) sum_p (2 gamma x . y)^p / p!`` for p
      from 0 to ``order``, the first terms of the Gaussian's series, or ``x . y``. torchdistill has
      the norm without its square.

    Source: Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019,
    arXiv 1904.01802, section 3.

    Args:
        student: ``[B, D]``.
        teacher: Vectors of the same images; for ``neighbours`` of the same length.
        form: One of the above.
        gamma: The Gaussian's parameter, from 0 to 100.
        order: The last power in its series, from 0 to 100.

    Raises:
        InputError: The form does not exist, a number is out of range, or the shapes do not fit.

    Example:
        >>> cc_loss(torch.ones(3, 2), torch.zeros(3, 2)).item()
        2.0
    """
    check_choice("form", form, get_args(Congruence))
    check_number("gamma", gamma, least=0, most=LARGEST_GAMMA)
    check_number("order", order, least=0, most=LARGEST_ORDER)
    check_same_batch(student, teacher, 2, "vectors [B, D]")
    if form == "neighbours":
        check_same_shape(student, teacher, "vectors [B, D]")
        away = (student - teacher).abs()
        return (away[:-1] * away[1:]).sum() / max(len(away) - 1, 1)
    # The bilinear kernel is the term of order 1 alone.
    factors = _taylor(gamma, order) if form == "gaussian" else [0.0, 1.0]
    return (_kernel(student, factors) - _kernel(teacher, factors)).square().mean()


def _taylor(gamma: float, order: int) -> list[float]:
    """The factors of the powers of ``x . y`` in ``exp(-gamma |x - y|^2)`` for unit x and y."""
    return [
        math.exp(-2 * gamma) * (2 * gamma) ** power / math.factorial(power)
        for power in range(int(order) + 1)
    ]


def _kernel(vectors: Tensor, factors: list[float]) -> Tensor:
    """``sum_p factors[p] (x . y)^p`` for each two of the vectors, at unit length: ``[B, B]``."""
    directions = unit(vectors)
    cosines = directions @ directions.T
    kernel = torch.full_like(cosines, factors[-1])
    for factor in reversed(factors[:-1]):
        kernel = kernel * cosines + factor
    return kernel


class CC(FeatureMethod):
    """Congruent neighbours: ``ce * CE + kd * KD + weight * mean_i sum |e_i| |e_i+1|``.

    ``e_i`` is the difference between student and teacher for image i of the batch, after a linear
    embedding of each pooled vector. ``form`` selects one of the paper's kernels instead, see
    `dskd.losses.cc`. Both embeddings are trained with the student and never deployed; the teacher
    itself gets no gradient.

    Source: Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019,
    arXiv 1904.01802, section 3. Loss, embeddings and weight are those of CRD's repository
    (``literature`` has no KD). Its loss comes from the paper's author and differs from the paper's.
    The losses of the kernels are some orders of magnitude smaller and need another weight.

    Args:
        pair: Student and teacher, of the same classes, that end in linear layers.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the congruence.
        temperature: T of the predictions.
        dim: Dimension of the embedded vectors.
        form: ``neighbours``, or the paper's ``gaussian`` or ``bilinear``.
        gamma: The Gaussian's parameter; the other forms have none.
        order: The last power in the Gaussian's series; the other forms have none.

    Raises:
        InputError: A setting is out of range, or one of the two has no pooled vector.
    """

    learns_from = "relations"
    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 0.02}}
    needs = TeacherNeeds(logits=True, pooled=True)

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        weight: Weight = 0.02,
        temperature: Positive = 4.0,
        dim: Count = 128,
        form: Congruence = "neighbours",
        gamma: Positive = 0.4,
        order: Count = 2,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_pooled(pair)
        self.student_embedding = nn.Linear(student, dim)
        self.teacher_embedding = nn.Linear(teacher, dim)
        self.weight, self.form, self.gamma, self.order = weight, form, gamma, order

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the congruence."""
        embedded = self.student_embedding(student.pooled)
        target = self.teacher_embedding(teacher.pooled)
        return {"cc": self.weight * cc_loss(embedded, target, self.form, self.gamma, self.order)}
