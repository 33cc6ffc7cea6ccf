"""Softmax regression representation: the teacher's classifier compares the two vectors."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.losses.checks import check_images, check_number, check_same_shape
from dskd.losses.precision import in_full_precision
from dskd.methods.base import FeatureMethod
from dskd.methods.checks import check_classes, check_classifier, check_pooled
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


@in_full_precision
def srrl_loss(
    student: Tensor,
    teacher: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    feature: float = 1.0,
    regression: float = 1.0,
) -> Tensor:
    """Softmax regression representation: ``alpha mean((h - g)^2) + beta mean((W h - W g)^2)``.

    ``h`` is the student's vector, connected to the teacher's length, ``g`` the teacher's vector and
    ``W`` the teacher's frozen classifier, which weights the differences between the two by their
    effect on the logits.

    Source: Yang, Martinez, Bulat, Tzimiropoulos, Knowledge Distillation via Softmax Regression
    Representation Learning, ICLR 2021, its losses L_FM and L_SR. Both are means over all elements,
    as in the authors' code.

    Args:
        student: h, ``[B, D]``.
        teacher: g, ``[B, D]``.
        student_logits: W h, ``[B, K]``.
        teacher_logits: The teacher's own logits, ``[B, K]``.
        feature: alpha, the weight of the vectors.
        regression: beta, the weight of the logits.

    Raises:
        InputError: Vectors or logits differ in shape, are not of the same images, or a weight is
            not a number.

    Example:
        >>> import torch
        >>> zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
        >>> srrl_loss(zeros, ones, zeros, 2 * ones).item()
        5.0
    """
    check_number("feature", feature)
    check_number("regression", regression)
    check_same_shape(student, teacher, "vectors [B, D]")
    check_same_shape(student_logits, teacher_logits, "logits [B, K]")
    check_images(student_logits, len(student), "logits [B, K]")
    of_vectors = (student - teacher).square().mean()
    of_logits = (student_logits - teacher_logits).square().mean()
    return feature * of_vectors + regression * of_logits


class SRRL(FeatureMethod):
    """The teacher's classifier compares: ``ce * CE + kd * KD + feature * FM + regression * SR``.

    ``FM = mean (h - g)^2`` and ``SR = mean (W h - W g)^2``. ``h`` is the student's pooled vector
    after a connector, which is trained with the student and never deployed; ``g`` is the teacher's
    vector and ``W`` the teacher's classifier, frozen. See `dskd.losses.srrl`.

    Source: Yang, Martinez, Bulat, Tzimiropoulos, Knowledge Distillation via Softmax Regression
    Representation Learning, ICLR 2021. ``feature`` is the alpha and ``regression`` the beta of its
    losses L_FM and L_SR; the authors' code weights each by 1. The connector (1x1 convolution,
    BatchNorm, ReLU) is that of their code. On pooled vectors, as in SimKD's repository, the
    convolution is a linear layer. The ReLU is left out unless the teacher's vector is known to be
    the average of a map after a ReLU: *our choice*, since the connector could not reach negative
    values. ``literature`` has no KD, as in the authors' code; SimKD's repository adds it with
    weight 1.

    Args:
        pair: Student and teacher, of the same classes, with pooled vectors; the teacher ends in a
            linear layer.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        feature: Weight of the distance of the pooled features.
        regression: Weight of the logits of the teacher's classifier.
        temperature: T of the predictions.

    Raises:
        InputError: A setting is out of range, one of the two has no pooled vector, or the teacher
            does not end in a linear layer.
    """

    needs = TeacherNeeds(logits=True, pooled=True)
    learns_from = "classifier"
    presets: ClassVar = {"literature": {"ce": 1.0, "kd": 0.0, "feature": 1.0, "regression": 1.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        feature: Weight = 1.0,
        regression: Weight = 1.0,
        temperature: Positive = 4.0,
    ) -> None:
        super().__init__(pair, ce, kd, temperature)
        student, teacher = check_pooled(pair)
        self.connector = nn.Sequential(
            nn.Linear(student, teacher, bias=False), nn.BatchNorm1d(teacher)
        )
        if check_classes(pair).pooled_nonnegative:
            self.connector.append(nn.ReLU())
        self.classifier = check_classifier(pair)
        self.feature, self.regression = feature, regression

    def extra_losses(
        self, batch: Batch, student: ModelOutput, teacher: ModelOutput
    ) -> dict[str, Tensor]:
        """The loss of the vectors and of the logits of the teacher's classifier."""
        assert teacher.pooled is not None, "the constructor checks this"
        connected = self.connector(student.pooled)
        loss = srrl_loss(
            connected,
            teacher.pooled,
            self.classifier(connected),
            teacher.logits,
            self.feature,
            self.regression,
        )
        return {"srrl": loss}
