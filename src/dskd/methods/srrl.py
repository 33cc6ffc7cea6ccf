"""Softmax regression representation: the teacher's classifier evaluates the student's vector."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.losses.reuse import srrl
from dskd.methods.base import (
    FeatureMethod,
    Pair,
    TeacherNeeds,
    check_classes,
    check_classifier,
    check_pooled,
)
from dskd.models.output import ModelOutput
from dskd.settings import Positive, Weight, checked


class SRRL(FeatureMethod):
    """Teacher's classifier evaluates: ``ce * CE + kd * KD + feature * FM + regression * SR``.

    ``FM = mean (h - g)^2`` with h the student's pooled vector through a connector, trained beside
    it and never deployed, and g the teacher's; ``SR = mean (W h - W g)^2`` with W the teacher's
    classifier, frozen. See `dskd.losses.srrl`.

    Source: Yang, Martinez, Bulat, Tzimiropoulos, Knowledge Distillation via Softmax Regression
    Representation Learning, ICLR 2021: ``feature`` is its alpha, ``regression`` its beta, of the
    losses L_FM and L_SR, which its authors' code weights by 1 each. The connector (1x1 convolution,
    BatchNorm, ReLU) is that of their code; on pooled vectors, as in SimKD's repository, the
    convolution is a linear layer. The ReLU is left out where the teacher's vector is not known to
    be the average of a map behind one: *our choice*, it would reach no value below zero.
    ``literature`` has no KD, as in the authors' code; SimKD's repository adds it with weight 1.

    Args:
        pair: Student and teacher, of the same classes, with pooled vectors; the teacher ends in a
            linear layer.
        ce: Weight of the labels.
        kd: Weight of the teacher's predictions.
        feature: Weight of the vectors.
        regression: Weight of the teacher's classifier's logits.
        temperature: T of the predictions.

    Raises:
        InputError: A setting is out of range, one of the two has no pooled vector, or the teacher
            does not end in a linear layer.
    """

    needs = TeacherNeeds(logits=True, pooled=True)
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
        """The loss of vectors and of the teacher's classifier's logits."""
        assert teacher.pooled is not None, "the constructor made sure of it"
        connected = self.connector(student.pooled)
        loss = srrl(
            connected,
            teacher.pooled,
            self.classifier(connected),
            teacher.logits,
            self.feature,
            self.regression,
        )
        return {"srrl": loss}
