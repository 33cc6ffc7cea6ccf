"""DSKD: knowledge distillation with deep supervision, reconstructed from the paper's abstract."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.allocation import Allocation
from dskd.losses.deep_supervision import DSKDTerms, FeatureScale, WeightsPer, dskd_terms
from dskd.losses.feature_maps import pool_to
from dskd.losses.logits import PER_SAMPLE, bind
from dskd.methods.base import (
    BranchedMethod,
    Pair,
    StepOutput,
    TeacherNeeds,
    at_same_depth,
    check_stages,
    require_outputs,
)
from dskd.methods.branches import Branch, Downsampling
from dskd.models.output import ModelOutput
from dskd.settings import Count, Positive, Weight, checked


class DSKD(BranchedMethod):
    """Predictions and maps supervise shallow stages too: ``ce * CE + kd * KD + sum_l w_l S_l``.

    The objective of a batch is ``D + sum_l w_l S_l``: see `dskd.losses.dskd` for its equations,
    `dskd.methods.branches.Branch` for what hangs on a stage, `dskd.losses.allocation.allocate` for the weights.
    What is deployed is the plain student.

    Source: Luo, Chen, Wang, Knowledge Distillation with Deep Supervision, IJCNN 2023,
    arXiv 2202.07846. **A reconstruction from the abstract**, which fixes that the teacher's class
    predictions and feature maps supervise the shallow layers, and that a loss-based weight
    allocation balances them. Every setting below is what it leaves open: *our choice*. The defaults
    of ``feature_target`` and ``beta`` were chosen by measurement (docs/results/protocol.md).

    Args:
        pair: Student and teacher, of the same classes; the student has two stages or more.
        temperature: T of the deep layer and of the branches.
        ce: Weight of the labels at the deep layer.
        kd: Weight of the teacher at the deep layer.
        alpha: Weight of the predictions P_l.
        beta: Weight of the feature maps M_l.
        gamma: Weight of the labels on the branches; DSN's term.
        allocation: The rule for the weights w_l.
        tau: Temperature of the softmax rules.
        weights_per: One weight a stage for the ``batch``, or one for every ``sample``.
        feature_target: ``last``, the teacher's last map for every branch, or ``matched``, the one
            at the same relative depth, ``ceil(l L_t / L)``.
        feature_scale: ``relative``, or ``none`` for a plain MSE.
        adapter: How an adapter brings a map to the teacher's size: ``pool`` first, or by a 3x3
            convolution of ``stride`` 2 for every halving.
        adapter_width: Channels inside an adapter; None for ``max(32, C_t / 2)``.
        supervise: Which shallow stages have a branch, from 1; None for all.
        prediction_loss: Logit loss of the branches: kl (or kd), kd-standardized, dkd, dist.
        prediction_options: Its further settings, such as ``{"beta": 2.0}`` for dkd.
        deep_loss: Logit loss of the deep layer, one of the same.
        deep_options: Its further settings.

    Raises:
        InputError: A setting is out of range, or student and teacher do not fit.

    Example:
        >>> import dskd
        >>> result = dskd.distill(  # doctest: +SKIP
        ...     student="resnet8",
        ...     teacher="resnet20",
        ...     data="digits",
        ...     method={"name": "dskd", "beta": 2.0},
        ... )
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # The reconstruction as the design gives it. Our defaults may move with our measurements;
        # these move only when a reader of the full text corrects them.
        "paper": {
            "temperature": 4.0,
            "ce": 1.0,
            "kd": 1.0,
            "alpha": 1.0,
            "beta": 1.0,
            "gamma": 0.0,
            "allocation": "proportional",
            "tau": 1.0,
            "weights_per": "batch",
            "feature_target": "last",
            "feature_scale": "relative",
            "adapter": "pool",
            "adapter_width": None,
            "supervise": None,
            "prediction_loss": "kl",
            "deep_loss": "kd",
        }
    }

    @checked
    def __init__(
        self,
        pair: Pair,
        *,
        temperature: Positive = 4.0,
        ce: Weight = 1.0,
        kd: Weight = 1.0,
        alpha: Weight = 1.0,
        beta: Weight = 10.0,
        gamma: Weight = 0.0,
        allocation: Allocation = "proportional",
        tau: Positive = 1.0,
        weights_per: WeightsPer = "batch",
        feature_target: Literal["last", "matched"] = "matched",
        feature_scale: FeatureScale = "relative",
        adapter: Downsampling = "pool",
        adapter_width: Count | None = None,
        supervise: list[Count] | None = None,
        prediction_loss: str = "kl",
        prediction_options: dict[str, Any] | None = None,
        deep_loss: str = "kd",
        deep_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(pair, supervise)
        student, teacher = check_stages(pair)
        if weights_per == "sample" and prediction_loss not in PER_SAMPLE:
            raise InputError(
                f"weights_per=sample needs a loss for every image, which {prediction_loss!r} "
                f"does not have; take weights_per=batch or one of {', '.join(sorted(PER_SAMPLE))}"
            )
        matched = at_same_depth(len(student), len(teacher))
        self.targets = [
            len(teacher) - 1 if feature_target == "last" else matched[stage]
            for stage in self.supervised
        ]
        self.needs = TeacherNeeds(logits=True, stages=tuple(sorted(set(self.targets))))
        self.branches = nn.ModuleList(
            Branch(
                student[stage],
                teacher[target],
                pair.student_spec.classes,
                adapter_width,
                adapter,
            )
            for stage, target in zip(self.supervised, self.targets, strict=True)
        )
        self.deep_loss = bind(deep_loss, temperature, deep_options or {})
        self.prediction_loss = bind(prediction_loss, temperature, prediction_options or {})
        self.ce, self.kd, self.alpha, self.beta, self.gamma = ce, kd, alpha, beta, gamma
        self.allocation, self.tau = allocation, tau
        self.weights_per, self.feature_scale = weights_per, feature_scale

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """``D + sum_l w_l S_l``, and what each branch did."""
        teacher = require_outputs(teacher)
        student = self.student(batch.images)
        branches = self.branch_outputs(student.stages)
        maps = [
            pool_to(teacher.stages[target], *branch.map.shape[2:])
            for target, branch in zip(self.targets, branches, strict=True)
        ]
        terms = dskd_terms(
            student.logits,
            teacher.logits,
            batch.labels,
            [branch.logits for branch in branches],
            [branch.map for branch in branches],
            maps,
            ce=self.ce,
            kd=self.kd,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            allocation=self.allocation,
            tau=self.tau,
            weights_per=self.weights_per,
            feature_scale=self.feature_scale,
            deep_loss=self.deep_loss,
            prediction_loss=self.prediction_loss,
        )
        losses = {"ce": terms.ce, "kd": terms.kd, "shallow": terms.shallow}
        return StepOutput(losses, student.logits, self._metrics(terms))

    def _metrics(self, terms: DSKDTerms) -> dict[str, Tensor]:
        return {
            f"stage{stage + 1}/{name}": values[branch]
            for branch, stage in enumerate(self.supervised)
            for name, values in (
                ("prediction", terms.predictions),
                ("feature", terms.features),
                ("weight", terms.weights),
            )
        }
