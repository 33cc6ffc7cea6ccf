"""Be your own teacher: the student's deepest classifier teaches its branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dskd.data.loader import Batch
from dskd.losses.checks import check_images, check_lists, check_tensor
from dskd.losses.feature_maps import feature_loss, pool_to
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.logits import kd as divergence
from dskd.losses.precision import in_full_precision
from dskd.methods.contracts import Pair, StepOutput
from dskd.methods.dsn import DSN, dsn_loss
from dskd.models.output import ModelOutput
from dskd.settings import (
    Count,
    Positive,
    Weight,
    checked,
    signature_settings,
    takes_settings_of,
    validate,
)


@in_full_precision
def byot_terms(
    student_logits: Tensor,
    labels: Tensor,
    branch_logits: Sequence[Tensor],
    branch_maps: Sequence[Tensor],
    student_map: Tensor,
    *,
    ce: Weight = 1.0,
    weight: Weight = 1.0,
    kd: Weight = 1.0,
    features: Weight = 0.03,
    temperature: Positive = 3.0,
) -> dict[str, Tensor]:
    """The weighted terms of `byot_loss` by name; see there for the arguments."""
    check_lists(branch_logits=branch_logits, branch_maps=branch_maps)
    check_tensor(student_logits, "logits [B, K]")
    for feature_map in (student_map, *branch_maps):
        check_tensor(feature_map, "feature maps [B, C, H, W]")
        check_images(feature_map, len(student_logits), "feature maps [B, C, H, W]")
    deepest, last = student_logits.detach(), student_map.detach()
    predictions = [divergence(logits, deepest, temperature) for logits in branch_logits]
    maps = [feature_loss(m, pool_to(last, *m.shape[2:]), "none") for m in branch_maps]
    return {
        "ce": ce * cross_entropy(student_logits, labels),
        "shallow": weight * dsn_loss(branch_logits, labels),
        "kd": kd * torch.stack(predictions).sum(),
        "features": features * torch.stack(maps).sum(),
    }


@takes_settings_of(byot_terms)
def byot_loss(
    student_logits: Tensor,
    labels: Tensor,
    branch_logits: Sequence[Tensor],
    branch_maps: Sequence[Tensor],
    student_map: Tensor,
    **settings: Any,
) -> Tensor:
    r"""Self-distillation: the deepest classifier teaches those on the shallow stages.

    ``ce CE(z_s, y) + sum_l (weight CE(z_l, y) + kd T^2 KL(p_s || p_l) + features MSE(A_l, F_s))``.
    ``z_s`` and ``F_s`` get no gradient from the terms in which they teach.

    Source: Zhang et al., Be Your Own Teacher, ICCV 2019, arXiv 1905.08094, the sum of its three
    losses: ``CE(z_s, y) + sum_l ((1 - alpha) CE + alpha KL + lambda ||A_l - F_s||^2)``, hence
    ``ce = 1, weight = 1 - alpha, kd = alpha / T^2``. The paper's KL is not multiplied by ``T^2``.
    The mean over a map's values instead of the sum is *our choice*: a weight then means the same
    for maps of any size.

    Args:
        student_logits: z_s, ``[B, K]``.
        labels: y, int64, ``[B]``, or soft targets ``[B, K]`` (see `dskd.losses.ce`).
        branch_logits: z_l, one or more tensors ``[B, K]``.
        branch_maps: A_l, as many tensors ``[B, C, H, W]``.
        student_map: F_s, ``[B, C, H', W']``; average-pooled to a branch's map if it is larger.
        **settings: The weights ``ce`` (labels at the deepest classifier), ``weight`` (labels at
            each branch), ``kd`` (the deepest classifier's predictions) and ``features`` (the
            deepest map), and ``temperature``, T, above 0.

    Raises:
        InputError: The shapes do not fit, a setting does not exist or is out of range, or, on the
            CPU, a label is not one of the classes.

    Example:
        >>> z, y, maps = torch.zeros(2, 4), torch.tensor([0, 3]), torch.ones(2, 3, 2, 2)
        >>> round(byot_loss(z, y, [z], [maps], maps).item(), 4)  # the two losses of the labels
        2.7726
    """
    chosen = validate(signature_settings(byot_terms), settings).model_dump()
    terms = byot_terms(student_logits, labels, branch_logits, branch_maps, student_map, **chosen)
    return torch.stack(list(terms.values())).sum()


class BYOT(DSN):
    """Self-distillation: ``ce * CE + sum_l (weight * CE_l + kd * KD_l + features * MSE_l)``.

    The branches are those of dsn. They also learn from the student's own predictions and last map.
    No gradient flows into these targets. There is no teacher. See `dskd.losses.byot` for the terms.

    Source: Zhang, Song, Gao, Chen, Bao, Ma, ICCV 2019, arXiv 1905.08094. The paper weights a
    branch's terms by ``1 - alpha``, ``alpha`` and ``lambda``, and its deepest classifier learns
    from labels alone. Here they are ``weight``, ``kd`` times ``T^2`` and ``features``.
    ``literature`` has alpha = 0.3 and T = 3 from the authors' code (the journal version's, the only
    public one): ``weight = 0.7, kd = 0.3 / 3^2``. In the authors' code, 0.03 is the weight of the
    distance, not squared, of pooled vectors. Here it is the weight of the mean squared error.

    Args:
        pair: The student, with two stages or more; no teacher is needed.
        ce: Weight of the labels at the student's own classifier.
        weight: Weight of the labels at each branch.
        kd: Weight of the student's predictions at each branch.
        features: Weight of the student's last map at each branch.
        temperature: T of the predictions.
        supervise: Which shallow stages get a branch, from 1; None for all.

    Raises:
        InputError: A setting is out of range, or the student has no shallow stage.
    """

    learns_from = "labels"
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
        """The losses of the labels, and those of the branches against the student's end."""
        student = self.student(batch.images)
        branches = self.branch_outputs(student.stages)
        losses = byot_terms(
            student.logits,
            batch.targets,
            [branch.logits for branch in branches],
            [branch.map for branch in branches],
            student.stages[-1],
            ce=self.ce,
            weight=self.weight,
            kd=self.kd,
            features=self.features,
            temperature=self.temperature,
        )
        return StepOutput(losses, student.logits)
