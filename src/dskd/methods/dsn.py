"""Deeply-supervised nets: the labels supervise the shallow stages too; there is no teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.checks import check_lists, check_tensor, described
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.precision import in_full_precision
from dskd.methods.base import BranchedMethod
from dskd.methods.branches import Branch, linear_classifier
from dskd.methods.contracts import Pair, StepOutput
from dskd.models.output import ModelOutput
from dskd.settings import Count, Weight, checked


@in_full_precision
def dsn_loss(branch_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Deep supervision: ``sum_l CE(z_l, y)``.

    Source: Lee, Xie, Gallagher, Zhang, Tu, Deeply-Supervised Nets, AISTATS 2015,
    arXiv 1409.5185, section 2.2 (the companion objectives). The paper has squared hinge losses
    there; each counts only above a threshold and fades out during training. Cross-entropy with a
    constant weight is *our choice*, and common in later work.

    Args:
        branch_logits: z_l, one or more tensors ``[B, K]``.
        labels: y, int64, ``[B]``, or soft targets ``[B, K]`` (see `dskd.losses.ce`).

    Raises:
        InputError: The shapes do not fit, or, on the CPU, a label is not one of the classes.

    Example:
        >>> round(dsn_loss([torch.zeros(2, 4), torch.zeros(2, 4)], torch.tensor([0, 3])).item(), 4)
        2.7726
    """
    check_lists(branch_logits=branch_logits)
    for logits in branch_logits:
        check_tensor(logits, "branch_logits [B, K]")
        if logits.shape != branch_logits[0].shape:
            raise InputError(
                f"branch_logits of one shape are needed, got {described(branch_logits[0])} and "
                f"{described(logits)}"
            )
    return torch.stack([cross_entropy(logits, labels) for logits in branch_logits]).sum()


class DSN(BranchedMethod):
    """Labels at every stage, without a teacher: ``ce * CE(z_s, y) + weight * sum_l CE(z_l, y)``.

    During training, each shallow stage has a branch with its own classifier.

    Source: Lee, Xie, Gallagher, Zhang, Tu, AISTATS 2015, arXiv 1409.5185, section 2.2. For the loss
    see `dskd.losses.dsn`. The branches are `dskd.methods.branches.Branch`, built for the student's
    own last map, as dskd's preset ``paper-abstract`` builds them for the teacher's; the paper's
    are plain classifiers on a layer. ``literature`` is the sum that the authors' public
    configuration minimises: no loss has a weight.

    Args:
        pair: The student, with two stages or more; no teacher is needed.
        ce: Weight of the labels at the student's own classifier.
        weight: Weight of the labels at each branch.
        supervise: Which shallow stages get a branch, from 1; None for all.

    Raises:
        InputError: A setting is out of range, or the student has no shallow stage.
    """

    needs_teacher = False
    learns_from = "labels"
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
            Branch(stages[stage], stages[-1], linear_classifier(classes))
            for stage in self.supervised
        )
        self.ce, self.weight = ce, weight

    @property
    def learns_labels(self) -> bool:
        """Whether the student's classifier or the branches learn the labels."""
        return bool(self.ce or self.weight)

    def forward(self, batch: Batch, teacher: ModelOutput | None = None) -> StepOutput:
        """The losses of the labels; the teacher is not read."""
        student = self.student(batch.images)
        branches = self.branch_outputs(student.stages)
        losses = {
            "ce": self.ce * cross_entropy(student.logits, batch.targets),
            "shallow": self.weight * dsn_loss([b.logits for b in branches], batch.targets),
        }
        return StepOutput(losses, student.logits)
