"""Be your own teacher: the deepest classifier teaches the shallow ones."""

from __future__ import annotations

from typing import ClassVar

from dskd.data.loader import Batch
from dskd.losses.branched import byot_terms
from dskd.methods.base import Pair, StepOutput
from dskd.methods.dsn import DSN
from dskd.models.output import ModelOutput
from dskd.settings import Count, Positive, Weight, checked


class BYOT(DSN):
    """Self-distillation: ``ce * CE + sum_l (weight * CE_l + kd * KD_l + features * MSE_l)``.

    DSN's branches, which learn from the student's own predictions and last map too (without a
    gradient to these); no teacher. See `dskd.losses.byot` for the terms.

    Source: Zhang, Song, Gao, Chen, Bao, Ma, ICCV 2019, arXiv 1905.08094. The paper weighs a
    branch's terms by ``1 - alpha``, ``alpha`` and ``lambda``, and the deepest classifier learns
    from labels alone; ours are ``weight``, ``kd`` times ``T^2`` and ``features``. ``literature``
    has alpha = 0.3 and T = 3 of its authors' code (the journal version's, the only one that is
    public): ``weight = 0.7, kd = 0.3 / 3^2``. Its 0.03 for the features belongs there to a
    distance that is not squared, between pooled vectors; here it is taken for the mean square.

    Args:
        pair: The student, with two stages or more; no teacher is needed.
        ce: Weight of the labels at the student's own classifier.
        weight: Weight of the labels at each branch.
        kd: Weight of the student's predictions at each branch.
        features: Weight of the student's last map at each branch.
        temperature: T of the predictions.
        supervise: Which shallow stages have a branch, from 1; None for all.

    Raises:
        InputError: A setting is out of range, or the student has no shallow stage.
    """

    presets: ClassVar = {
        "literature": {
            "ce": 1.0,
            "weight": 0.7,
            "kd": 0.3 / 9,
            "features": 0.03,
            "temperature": 3.0,
        }
    }

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        weight: Weight = 1.0,
        kd: Weight = 1.0,
        features: Weight = 0.03,
        temperature: Positive = 3.0,
        supervise: list[Count] | None = None,
    ) -> None:
        super().__init__(pair, ce=ce, weight=weight, supervise=supervise)
        self.kd, self.features, self.temperature = kd, features, temperature

    def forward(self, batch: Batch, teacher: ModelOutput | None = None) -> StepOutput:
        """The labels' losses, and what the branches learn from the student's end."""
        student = self.student(batch.images)
        branches = self.branch_outputs(student.stages)
        losses = byot_terms(
            student.logits,
            batch.labels,
            [branch.logits for branch in branches],
            [branch.map for branch in branches],
            student.stages[-1],
            self.ce,
            self.weight,
            self.kd,
            self.features,
            self.temperature,
        )
        return StepOutput(losses, student.logits)
