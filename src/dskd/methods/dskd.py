"""DSKD: knowledge distillation with deep supervision, reconstructed from the paper's abstract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.losses.allocation import Allocation, allocate
from dskd.losses.checks import check_images, check_lists, check_same_shape, check_tensor
from dskd.losses.feature_maps import FeatureScale, feature_loss, pool_to
from dskd.losses.logits import PER_SAMPLE, Reduction, bind
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.precision import in_full_precision
from dskd.methods.base import BranchedMethod
from dskd.methods.branches import Branch, Downsampling
from dskd.methods.checks import at_same_depth, check_stages
from dskd.methods.contracts import Pair, StepOutput, TeacherNeeds, require_outputs
from dskd.models.output import ModelOutput
from dskd.runtime import distributed
from dskd.settings import Count, Positive, Weight, checked, takes_settings_of

WeightsPer = Literal["batch", "sample"]


class DSKDTerms(NamedTuple):
    """The terms of DSKD's objective.

    Attributes:
        ce: ``ce * CE(z_s, y)``, scalar.
        kd: ``kd * T^2 KL`` at the deep layer, scalar.
        shallow: ``sum_l w_l S_l``, scalar.
        predictions: ``P_l``, ``[N]``, detached.
        features: ``M_l``, ``[N]``, detached.
        weights: ``w_l``, ``[N]`` (the mean over the batch if weights are per sample).
    """

    ce: Tensor
    kd: Tensor
    shallow: Tensor
    predictions: Tensor
    features: Tensor
    weights: Tensor

    @property
    def objective(self) -> Tensor:
        """``D + sum_l w_l S_l``."""
        return self.ce + self.kd + self.shallow


class DSKDObjective:
    """The objective of `dskd_loss` with its settings. This is the one list of them.

    Args:
        temperature: T of the deep layer and of the branches.
        ce: Weight of the labels at the deep layer.
        kd: Weight of the teacher at the deep layer.
        alpha: Weight of the predictions P_l.
        beta: Weight of the feature maps M_l.
        gamma: Weight of the labels on the branches; DSN's term.
        allocation: The rule for the weights w_l, see `dskd.losses.allocation.allocate`.
        tau: Temperature of the softmax rules.
        weights_per: One weight per stage for the ``batch``, or one for every ``sample``.
        feature_scale: ``relative``, or ``none`` for a plain MSE.
        prediction_loss: Logit loss of the branches: kl (or kd), kd-standardized, dkd, dist.
        prediction_options: Its further settings, such as ``{"beta": 2.0}`` for dkd.
        deep_loss: Logit loss of the deep layer, one of the same.
        deep_options: Its further settings.

    Raises:
        InputError: A setting is out of range, or ``prediction_loss`` has no value per image while
            weights are per sample.
    """

    @checked
    def __init__(
        self,
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
        feature_scale: FeatureScale = "relative",
        prediction_loss: str = "kl",
        prediction_options: dict[str, Any] | None = None,
        deep_loss: str = "kd",
        deep_options: dict[str, Any] | None = None,
    ) -> None:
        if weights_per == "sample" and prediction_loss not in PER_SAMPLE:
            raise InputError(
                f"weights_per=sample needs a loss for every image, which {prediction_loss!r} "
                f"does not have; take weights_per=batch or one of {', '.join(sorted(PER_SAMPLE))}"
            )
        self.deep_loss = bind(deep_loss, temperature, deep_options or {})
        self.prediction_loss = bind(prediction_loss, temperature, prediction_options or {})
        self.ce, self.kd, self.alpha, self.beta, self.gamma = ce, kd, alpha, beta, gamma
        self.allocation, self.tau = allocation, tau
        self.weights_per, self.feature_scale = weights_per, feature_scale

    @in_full_precision
    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        branch_logits: Sequence[Tensor],
        branch_maps: Sequence[Tensor],
        teacher_maps: Sequence[Tensor],
    ) -> DSKDTerms:
        """The terms for a batch; see `dskd_loss` for the arguments."""
        check_same_shape(student_logits, teacher_logits, "logits [B, K]")
        check_lists(branch_logits=branch_logits, branch_maps=branch_maps, teacher_maps=teacher_maps)
        for maps in branch_maps:
            check_tensor(maps, "branch_maps [B, C, H, W]")
            check_images(maps, len(student_logits), "branch_maps [B, C, H, W]")
        per_sample = self.weights_per == "sample"
        reduction: Reduction = "none" if per_sample else "mean"
        predictions = torch.stack(
            [
                self.prediction_loss(z, teacher_logits, labels, reduction=reduction)
                for z in branch_logits
            ]
        )
        features = torch.stack(
            [
                feature_loss(adapted, target, self.feature_scale, reduction)
                for adapted, target in zip(branch_maps, teacher_maps, strict=True)
            ]
        )
        shallow = self.alpha * predictions + self.beta * features  # S_l
        if self.gamma:
            by_labels = [cross_entropy(z, labels, reduction) for z in branch_logits]
            shallow = shallow + self.gamma * torch.stack(by_labels)
        # One process has all values of an image, so weights per sample need no average.
        basis = shallow if per_sample else distributed.weighted_mean(shallow, len(student_logits))
        weights = allocate(basis, self.allocation, self.tau)
        return DSKDTerms(
            ce=self.ce * cross_entropy(student_logits, labels),
            kd=self.kd * self.deep_loss(student_logits, teacher_logits, labels, reduction="mean"),
            shallow=(weights * shallow).sum(0).mean(),
            predictions=_over_images(predictions),
            features=_over_images(features),
            weights=_over_images(weights),
        )


def _over_images(values: Tensor) -> Tensor:
    """``[N]`` or ``[N, B]`` to ``[N]``, detached."""
    return values.detach().reshape(len(values), -1).mean(1)


@takes_settings_of(DSKDObjective)
def dskd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    branch_logits: Sequence[Tensor],
    branch_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    **settings: Any,
) -> Tensor:
    r"""Knowledge distillation with deep supervision: the whole objective of a batch.

    With branches ``l = 1 .. N`` on the shallow stages::

        D    = ce CE(z_s, y) + kd T^2 KL(softmax(z_t / T) || softmax(z_s / T))
        P_l  = T^2 KL(softmax(z_t / T) || softmax(z_l / T))
        M_l  = MSE(A_l, F_t) / mean(F_t^2)
        S_l  = alpha P_l + beta M_l + gamma CE(z_l, y)
        loss = D + sum_l w_l S_l,    w = allocate(S), without gradient

    Source: Luo, Chen, Wang, Knowledge Distillation with Deep Supervision, IJCNN 2023,
    arXiv 2202.07846. A reconstruction from the abstract: that P, M and a loss-based allocation
    act on the shallow layers is the paper's; the forms of M_l, S_l and of the allocation are
    *our choice*.

    Args:
        student_logits: z_s, ``[B, K]``.
        teacher_logits: z_t, ``[B, K]``.
        labels: y, int64, ``[B]``.
        branch_logits: z_l, N tensors ``[B, K]``.
        branch_maps: A_l(F_l), N tensors ``[B, C_t, H, W]``.
        teacher_maps: F_t for each branch, in the branch's shape.
        **settings: See `DSKDObjective`.

    Returns:
        A scalar.

    Raises:
        InputError: A setting does not exist or is out of range, shapes do not fit, or, on the CPU,
            a label is not one of the classes.

    Example:
        >>> z, y = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> maps = [torch.ones(2, 4, 2, 2)]
        >>> round(dskd_loss(z, z, y, [z], maps, maps).item(), 4)  # only the loss of the labels
        1.0986
    """
    tensors = student_logits, teacher_logits, labels, branch_logits, branch_maps, teacher_maps
    return DSKDObjective(**settings)(*tensors).objective


class DSKD(BranchedMethod):
    """Predictions and maps supervise shallow stages too: ``ce * CE + kd * KD + sum_l w_l S_l``.

    The objective of a batch is ``D + sum_l w_l S_l``. See `dskd.losses.dskd` for its equations,
    `dskd.methods.branches.Branch` for the branch on each shallow stage, and
    `dskd.losses.allocation.allocate` for the weights. The plain student is deployed.

    Source: Luo, Chen, Wang, Knowledge Distillation with Deep Supervision, IJCNN 2023,
    arXiv 2202.07846. **A reconstruction from the abstract.** The abstract says that the teacher's
    class predictions and feature maps supervise the shallow layers, and that a loss-based weight
    allocation balances them. Every setting below is something that it leaves open: *our choice*.
    The defaults of ``feature_target`` and ``beta`` were chosen by measurement
    (docs/results/protocol.md).

    Args:
        pair: Student and teacher, of the same classes; the student has two stages or more.
        feature_target: ``last``, the teacher's last map for every branch, or ``matched``, the one
            at the same relative depth, ``ceil(l L_t / L)``.
        adapter: How an adapter brings a map to the teacher's size: ``pool`` first, or by a 3x3
            convolution of ``stride`` 2 for every halving.
        adapter_width: Channels inside an adapter; None for ``max(32, C_t / 2)``.
        supervise: Which shallow stages get a branch, from 1; None for all.
        **settings: The settings of the objective, see `DSKDObjective`.

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
        # The reconstruction in its simplest form. The defaults may change with our measurements;
        # these change only if a reader of the full text corrects them.
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
    @takes_settings_of(DSKDObjective)
    def __init__(
        self,
        pair: Pair,
        *,
        feature_target: Literal["last", "matched"] = "matched",
        adapter: Downsampling = "pool",
        adapter_width: Count | None = None,
        supervise: list[Count] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(pair, supervise)
        student, teacher = check_stages(pair)
        self.objective = DSKDObjective(**settings)
        matched = at_same_depth(len(student), len(teacher))
        self.targets = [
            len(teacher) - 1 if feature_target == "last" else matched[stage]
            for stage in self.supervised
        ]
        self.needs = TeacherNeeds(logits=True, stages=tuple(sorted(set(self.targets))))
        classes = pair.student_spec.classes
        self.branches = nn.ModuleList(
            Branch(student[stage], teacher[target], classes, adapter_width, adapter)
            for stage, target in zip(self.supervised, self.targets, strict=True)
        )

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """``D + sum_l w_l S_l``, with the terms of each branch as metrics."""
        teacher = require_outputs(teacher)
        student = self.student(batch.images)
        branches = self.branch_outputs(student.stages)
        maps = [
            pool_to(teacher.stages[target], *branch.map.shape[2:])
            for target, branch in zip(self.targets, branches, strict=True)
        ]
        terms = self.objective(
            student.logits,
            teacher.logits,
            batch.labels,
            [branch.logits for branch in branches],
            [branch.map for branch in branches],
            maps,
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
