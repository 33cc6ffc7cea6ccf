"""DSKD: knowledge distillation with deep supervision, reconstructed from the paper's abstract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.methods.base import BranchedMethod, ramp
from dskd.methods.branches import Adapter, AdapterForm, BranchOutput
from dskd.methods.checks import check_stages, check_standardized
from dskd.methods.contracts import Pair, StepOutput, TeacherNeeds, require_outputs
from dskd.methods.deep_supervision import DSKDObjective, DSKDTerms
from dskd.methods.dskd_branches import (
    LAST,
    ClassifierKind,
    FeatureTarget,
    check_branch_settings,
    choose_targets,
    classifier_for,
    fused_branches,
    map_spec,
    plain_branches,
    teacher_map,
)
from dskd.models.output import ModelOutput
from dskd.settings import Count, Epochs, checked, takes_settings_of

DeepStage = Literal["none", "map", "both"]
PRESETS: dict[str, dict[str, Any]] = {
    # These change only if a reader of the full text corrects them, unlike the defaults.
    "paper": {
        "temperature": 2.0,
        "ce": 1.0,
        "kd": 0.0,
        "alpha": 0.5,
        "beta": 0.5,
        "gamma": 0.0,
        "allocation": "hard-first",
        "tau": 1.0,
        "allocate": "separate",
        "allocation_scale": "raw",
        "allocation_basis": "loss",
        "allocation_smoothing": 0.0,
        "weight_sum": "one",
        "weights_per": "batch",
        "feature_loss": "mse",
        "feature_scale": "none",
        "feature_target": "last",
        "map_size": None,
        "deep_stage": "both",
        "fuse": False,
        "adapter": "linear",
        "adapter_width": None,
        "adapter_depth": 1,
        "classifier": "mlp",
        "supervise": None,
        "prediction_loss": "kl",
        "deep_loss": "kd",
    },
    "paper-abstract": {
        "temperature": 4.0,
        "ce": 1.0,
        "kd": 1.0,
        "alpha": 1.0,
        "beta": 1.0,
        "gamma": 0.0,
        "allocation": "proportional",
        "tau": 1.0,
        "allocate": "joint",
        "allocation_scale": "relative",
        "allocation_basis": "loss",
        "allocation_smoothing": 0.0,
        "weight_sum": "count",
        "weights_per": "batch",
        "feature_loss": "mse",
        "feature_scale": "relative",
        "feature_target": "last",
        "map_size": None,
        "deep_stage": "none",
        "fuse": False,
        "adapter": "pool",
        "adapter_width": None,
        "adapter_depth": 1,
        "classifier": "linear",
        "supervise": None,
        "prediction_loss": "kl",
        "deep_loss": "kd",
    },
}
FADING = "an epoch changes a weight of DSKD, and torch would compile each anew"


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

    With ``allocate="separate"`` the predictions have the weights ``w = allocate(P)`` and the maps
    have ``v = allocate(M)``.

    Source: Luo, Chen, Wang, Knowledge Distillation with Deep Supervision, IJCNN 2023,
    arXiv 2202.07846. A reconstruction from the abstract. The abstract says that predictions, maps
    and a loss-based allocation act on the shallow layers. The forms of M_l, of S_l and of the
    allocation are *our choice*.

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
        >>> import torch
        >>> z, y = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> maps = [torch.ones(2, 4, 2, 2)]
        >>> round(dskd_loss(z, z, y, [z], maps, maps).item(), 4)  # only the loss of the labels
        1.0986
    """
    objective = DSKDObjective(**settings)
    if objective.remembered is not None:
        raise InputError(
            "allocation_basis=progress and allocation_smoothing need the losses of earlier steps, "
            "and a single call has none; keep a DSKDObjective for all steps"
        )
    tensors = student_logits, teacher_logits, labels, branch_logits, branch_maps, teacher_maps
    terms: DSKDTerms = objective(*tensors)
    return terms.objective


class DSKD(BranchedMethod):
    """Predictions and maps supervise shallow stages too: ``ce * CE + kd * KD + sum_l w_l S_l``.

    CE and KD are the losses of the student's own logits. S_l is the loss of the branch on the
    shallow stage l, and w_l its weight. A branch adapts the stage's map to the teacher's (A_l) and
    classifies it (logits z_l). docs/method.md has all equations and rules.

    Source: Luo, Chen, Wang, Knowledge Distillation with Deep Supervision, IJCNN 2023,
    arXiv 2202.07846. **A reconstruction from the abstract.** The abstract says that the teacher's
    class predictions and feature maps supervise the shallow layers, and that a loss-based weight
    allocation balances them. It leaves every setting below open: each is *our choice*.
    The defaults of ``feature_target`` and ``beta`` were chosen by measurement
    (docs/results/protocol.md). The preset ``paper-abstract`` is our first reading, in its simplest
    form. The preset ``paper`` is the reading of a re-implementation for language models
    (github.com/leahphw/babylm, 2025), whose authors had the full text. This is weak evidence,
    because it is about another modality. docs/method.md lists what comes from it and what we added.

    Args:
        pair: Student and teacher, of the same classes; the student has two stages or more.
        feature_target: ``last``, the teacher's last map for every branch, or ``matched``: for
            stage l of the student's L, the map of stage ``ceil(l L_t / L)`` of the teacher's L_t.
        map_size: Largest side of the maps that are compared; larger ones are average-pooled to it,
            which saves computation and, in a cache, disk. None for the teacher's own sizes.
        deep_stage: Which terms of the student's last stage join the weighted terms: ``none``, its
            ``map``, or ``both`` its map and the student's own prediction.
        fuse: Whether each stage is fused with the deeper ones before it is compared, as in
            reviewkd (`dskd.methods.stage_fusion.Fusion`). ``adapter`` and ``adapter_depth`` then do
            not apply, and ``adapter_width`` is the number of channels of the fused maps.
        adapter: How a map gets the size of the teacher's map. ``pool``: average-pooling, then a
            bottleneck of convolutions. ``stride``: a 3x3 convolution of stride 2 for every halving.
            ``linear``: average-pooling, then a 1x1 convolution.
        adapter_width: Channels inside an adapter; None for ``max(32, C_t / 2)``, or with ``fuse``
            for those of the student's last stage, at most 512.
        adapter_depth: Number of 3x3 convolutions in an adapter.
        classifier: From an adapted map to a branch's logits: a ``linear`` layer, an ``mlp``, or the
            ``teacher``'s own classifier, frozen. The teacher's needs ``feature_target=last``.
        supervise: Which shallow stages get a branch, from 1; None for all.
        prediction_warmup: Epochs over which the weight of the branches' predictions rises.
        prediction_epochs: Epochs over which this weight falls to 0; 0 if it does not fall.
        feature_epochs: Epochs over which the weight of the maps falls to 0; 0 if it does not fall.
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

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    prediction_weights: ClassVar[tuple[str, ...]] = ("kd", "alpha")

    @checked
    @takes_settings_of(DSKDObjective)
    def __init__(
        self,
        pair: Pair,
        *,
        feature_target: FeatureTarget = "matched",
        map_size: Count | None = None,
        deep_stage: DeepStage = "none",
        fuse: bool = False,
        adapter: Adapter = "pool",
        adapter_width: Count | None = None,
        adapter_depth: Count = 1,
        classifier: ClassifierKind = "linear",
        supervise: list[Count] | None = None,
        prediction_warmup: Epochs = 0.0,
        prediction_epochs: Epochs = 0.0,
        feature_epochs: Epochs = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(pair, supervise)
        check_branch_settings(
            feature_target, fuse, adapter, adapter_width, adapter_depth, classifier
        )
        student, _ = check_stages(pair)
        self.deep_stage: DeepStage = deep_stage
        self.other_classes = pair.other_classes
        self.allocated = self.supervised + [len(student) - 1] * (deep_stage != "none")
        self.targets = choose_targets(pair, self.allocated, feature_target, classifier)
        self.needs = TeacherNeeds(
            logits=True,
            stages=tuple(sorted({target for target in self.targets if target != LAST})),
            last=LAST in self.targets,
            map_size=map_size,
        )
        self.objective = DSKDObjective(**settings)
        if self.objective.standardizes:
            check_standardized(pair, "kd-standardized", "take kd, the default, as the logit loss")
        self.ce, self.hard_labels = self.objective.label_weight, self.objective.hard_labels
        self.objective.remember(len(self.allocated), len(self.supervised) + (deep_stage == "both"))
        self.fading = prediction_warmup, prediction_epochs, feature_epochs
        self.uncompiled = FADING if any(self.fading) else ""
        stages = [
            (student[stage], map_spec(pair, target, map_size))
            for stage, target in zip(self.allocated, self.targets, strict=True)
        ]
        build = classifier_for(pair, classifier)
        deep = stages.pop() if deep_stage != "none" else None
        self.fuse = fuse
        if fuse:
            width = adapter_width or min(512, student[-1].channels)
            self.branches, self.deep = fused_branches(stages, deep, build, width)
        else:
            form = AdapterForm(adapter_width, adapter, adapter_depth)
            self.branches, self.deep = plain_branches(stages, deep, build, form)

    @classmethod
    def reads_classes(cls, settings: Mapping[str, Any]) -> bool:
        """By the weights of the predictions, or in the branches' classifiers."""
        return any(settings[k] for k in ("kd", "alpha")) or settings["classifier"] == "teacher"

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> StepOutput:
        """``D + sum_l w_l S_l``, with the terms of each branch as metrics."""
        teacher = require_outputs(teacher)
        student = self.student(batch.images)
        branches, deep_map = self._run_branches(student.stages)
        logits, maps = [b.logits for b in branches], [b.map for b in branches]
        if deep_map is not None:
            maps.append(deep_map)
        if self.deep_stage == "both":
            logits.append(student.logits)
        terms: DSKDTerms = self.objective(
            student.logits,
            teacher.logits,
            batch.labels,
            logits,
            maps,
            [
                teacher_map(teacher, target, own.shape[2:], self.needs.map_size)
                for target, own in zip(self.targets, maps, strict=True)
            ],
            shares=self._shares(batch.epoch),
            last_map_alone=self.deep_stage == "map",
            targets=batch.targets,
        )
        losses = {"ce": terms.ce, "kd": terms.kd, "shallow": terms.shallow}
        return StepOutput(losses, student.logits, self._metrics(terms))

    def branch_outputs(self, stages: tuple[Tensor, ...]) -> list[BranchOutput]:
        """The output of each shallow branch for the student's stages."""
        return self._run_branches(stages)[0]

    def _run_branches(self, stages: tuple[Tensor, ...]) -> tuple[list[BranchOutput], Tensor | None]:
        """The outputs of the shallow branches, and the adapted map of the deep stage."""
        if not self.fuse:
            deep_map = self.deep(stages[-1]) if self.deep is not None else None
            return super().branch_outputs(stages), deep_map
        deep_map, deeper = self.deep(stages[-1], None) if self.deep is not None else (None, None)
        outputs: list[BranchOutput] = []
        for stage, branch in reversed([*zip(self.supervised, self.branches, strict=True)]):
            output, deeper = branch(stages[stage], deeper)
            outputs.insert(0, output)
        return outputs, deep_map

    def _shares(self, epoch: int) -> tuple[float, float]:
        """The shares of alpha and of beta that count in an epoch."""
        warmup, predictions, features = self.fading
        return ramp(epoch, warmup) * fall(epoch, predictions), fall(epoch, features)

    def _metrics(self, terms: DSKDTerms) -> dict[str, Tensor]:
        named = {"feature": terms.features, "weight": terms.weights}
        if not self.other_classes:
            named = {"prediction": terms.predictions} | named
        if self.objective.separate:
            named["feature_weight"] = terms.feature_weights
        return {
            f"stage{stage + 1}/{name}": values[branch]
            for branch, stage in enumerate(self.allocated)
            for name, values in named.items()
        }


def fall(epoch: int, epochs: float) -> float:
    """The share of its weight that a loss has in an epoch, falling linearly to 0.

    Args:
        epoch: From 0.
        epochs: The number of epochs until the weight is 0; 0 for the whole weight for ever.

    Example:
        >>> [fall(epoch, 4) for epoch in range(5)], fall(9, 0)
        ([1.0, 0.75, 0.5, 0.25, 0.0], 1.0)
    """
    return max(0.0, 1 - epoch / epochs) if epochs else 1.0
