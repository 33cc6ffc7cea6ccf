"""Deeply-supervised nets: the labels supervise the shallow stages too, and nobody else does."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from dskd.data.loader import Batch
from dskd.losses.branched import dsn
from dskd.losses.logits import ce as cross_entropy
from dskd.methods.base import BranchedMethod, Pair, StepOutput
from dskd.methods.branches import Branch
from dskd.models.output import ModelOutput
from dskd.settings import Count, Weight, checked


class DSN(BranchedMethod):
    """Labels at every stage, without a teacher: ``ce * CE(z_s, y) + weight * sum_l CE(z_l, y)``.

    A branch with a classifier of its own hangs on each shallow stage while the student learns.

    Source: Lee, Xie, Gallagher, Zhang, Tu, AISTATS 2015, arXiv 1409.5185, section 2.2. For
    the loss see `dskd.losses.dsn`. The branches are those of `dskd.methods.branches.Branch`, made for the
    student's own last map, as dskd's preset ``paper`` makes them for the teacher's; the paper's are
    plain classifiers on a layer. ``literature`` is the sum that its authors'
    public configuration minimises, in which no loss has a weight.

    Args:
        pair: The student, with two stages or more; no teacher is needed.
        ce: Weight of the labels at the student's own classifier.
        weight: Weight of the labels at each branch.
        supervise: Which shallow stages have a branch, from 1; None for all.

    Raises:
        InputError: A setting is out of range, or the student has no shallow stage.
    """

    needs_teacher = False
    presets: ClassVar = {"literature": {"ce": 1.0, "weight": 1.0}}

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        ce: Weight = 1.0,
        weight: Weight = 1.0,
        supervise: list[Count] | None = None,
    ) -> None:
        super().__init__(pair, supervise)
        stages, classes = pair.student_spec.stages, pair.student_spec.classes
        self.branches = nn.ModuleList(
            Branch(stages[stage], stages[-1], classes) for stage in self.supervised
        )
        self.ce, self.weight = ce, weight

    def forward(self, batch: Batch, teacher: ModelOutput | None = None) -> StepOutput:
        """The labels' losses; the teacher is not read."""
        student = self.student(batch.images)
        branches = self.branch_outputs(student.stages)
        losses = {
            "ce": self.ce * cross_entropy(student.logits, batch.labels),
            "shallow": self.weight * dsn([branch.logits for branch in branches], batch.labels),
        }
        return StepOutput(losses, student.logits)
