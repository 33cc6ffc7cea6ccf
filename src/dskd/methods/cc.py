"""Correlation congruence: the student's images relate to each other as the teacher's do."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.losses.relations import Congruence, cc
from dskd.methods.base import FeatureMethod, Pair, TeacherNeeds, check_pooled
from dskd.models.output import ModelOutput
from dskd.settings import Count, Positive, Weight, checked


class CC(FeatureMethod):
    """Congruent neighbours: ``ce * CE + kd * KD + weight * mean_i sum |e_i| |e_i+1|``.

    ``e_i`` is the difference of student and teacher at image i of the batch, after a linear
    embedding of each one's pooled vector; ``form`` takes the paper's kernels instead, see
    `dskd.losses.cc`. Both embeddings are trained beside the student and never deployed; the teacher
    itself gets no gradient.

    Source: Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019,
    arXiv 1904.01802, section 3; loss and embeddings as in CRD's repository, whose loss is from the
    paper's author and differs from the paper's. The weight is the one of that repository
    (``literature`` has no KD). The kernels' losses are some orders of magnitude smaller and need a
    weight of their own.

    Args:
        pair: Student and teacher, of the same classes, that end in linear layers.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        weight: Weight of the congruence.
        temperature: T of the predictions.
        dim: Length of the embedded vectors.
        form: ``neighbours``, or the paper's ``gaussian`` or ``bilinear``.
        gamma: Of the Gaussian; other forms have none.
        order: At which power the Gaussian's series ends; other forms have none.

    Raises:
        InputError: A setting is out of range, or one of the two has no pooled vector.
    """

    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "weight": 0.02}}

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
        self.needs = TeacherNeeds(logits=True, pooled=True)
        self.student_embedding = nn.Linear(student, dim)
        self.teacher_embedding = nn.Linear(teacher, dim)
        self.weight, self.form, self.gamma, self.order = weight, form, gamma, order

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the congruence."""
        embedded = self.student_embedding(student.pooled)
        target = self.teacher_embedding(teacher.pooled)
        return {"cc": self.weight * cc(embedded, target, self.form, self.gamma, self.order)}
