"""DSKD's objective: its terms, its settings, and the weights of the stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.losses.allocation import Allocation, AllocationScale, WeightSum, allocate
from dskd.losses.checks import check_images, check_lists, check_same_shape, check_tensor
from dskd.losses.feature_maps import FeatureScale
from dskd.losses.logits import PER_SAMPLE, Reduction, bind
from dskd.losses.logits import ce as cross_entropy
from dskd.losses.map_structure import FeatureLoss, bind_feature_loss
from dskd.losses.precision import in_full_precision
from dskd.methods.base import TARGET_SPLIT
from dskd.runtime import distributed
from dskd.settings import Fraction, Positive, Weight, checked

WeightsPer = Literal["batch", "sample"]
Allocate = Literal["joint", "separate"]
AllocationBasis = Literal["loss", "progress"]


class DSKDTerms(NamedTuple):
    """The terms of DSKD's objective.

    Attributes:
        ce: ``ce * CE(z_s, y)``, scalar.
        kd: ``kd * T^2 KL`` at the deep layer, scalar.
        shallow: ``sum_l w_l S_l``, scalar.
        predictions: ``P_l``, ``[N]``, detached.
        features: ``M_l``, ``[N]``, detached.
        weights: ``w_l``, ``[N]`` (the mean over the batch if weights are per sample).
        feature_weights: ``v_l``, ``[N]``; the same as ``weights`` if they are allocated jointly.
    """

    ce: Tensor
    kd: Tensor
    shallow: Tensor
    predictions: Tensor
    features: Tensor
    weights: Tensor
    feature_weights: Tensor

    @property
    def objective(self) -> Tensor:
        """``D + sum_l w_l S_l``."""
        return self.ce + self.kd + self.shallow


class AllocationHistory(nn.Module):
    """The losses from which the weights are computed: smoothed, or relative to the first.

    With ``progress``, a loss is divided by its value in the first step, as in Liu, Johns and
    Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019, arXiv 1803.10704, who compare
    two epochs. With a ``smoothing`` of ``s``, an average ``a <- s a + (1 - s) S`` takes the place
    of the loss; it starts at the first loss. That both serve DSKD's weights is *our choice*.

    Args:
        rows: Number of losses.
        basis: ``loss`` or ``progress``.
        smoothing: ``s``, below 1.
    """

    first: Tensor
    average: Tensor

    def __init__(self, rows: int, basis: AllocationBasis, smoothing: float) -> None:
        super().__init__()
        self.basis, self.smoothing = basis, smoothing
        self.register_buffer("first", torch.full((rows,), torch.nan))
        self.register_buffer("average", torch.full((rows,), torch.nan))

    def forward(self, losses: Tensor) -> Tensor:
        """The values that the weights depend on, ``[N]``; training updates the history."""
        losses = losses.detach().float()
        first = torch.where(self.first.isnan(), losses, self.first)
        values = losses / first.clamp_min(1e-12) if self.basis == "progress" else losses
        average = torch.where(self.average.isnan(), values, self.average)
        average = self.smoothing * average + (1 - self.smoothing) * values
        if self.training:
            self.first.copy_(first)
            self.average.copy_(average)
        return average


class DSKDObjective(nn.Module):
    """The objective of `dskd_loss`. Its settings are declared here and nowhere else.

    Args:
        temperature: T of the losses of the student's own logits and of the branches.
        ce: Weight of the labels for the student's own logits.
        kd: Weight of the teacher for the student's own logits.
        alpha: Weight of the predictions P_l.
        beta: Weight of the feature maps M_l.
        gamma: Weight of the labels on the branches; DSN's term.
        allocation: The rule for the weights w_l: ``proportional``, ``hard-first``, ``easy-first``,
            ``ca-mkd`` or ``uniform``, see `dskd.losses.allocation.allocate`.
        tau: Temperature of the rules that use a softmax: ``hard-first``, ``easy-first`` and
            ``ca-mkd``.
        allocate: ``joint``: one weight for S_l. ``separate``: P_l and M_l have weights of their
            own, each by the same rule. The labels have the weights of P_l; with ``alpha=0`` these
            come from the losses of the labels.
        allocation_scale: ``relative``: the rule sees losses divided by their mean. ``raw``: the
            rules with a softmax see the losses themselves (with ``allocate=separate``, those of the
            predictions without the factor T^2).
        allocation_basis: ``loss``, or ``progress`` for losses divided by their first values.
        allocation_smoothing: Factor of a moving average of what the rule sees; 0 for none.
        weight_sum: The sum of the weights: ``count`` for the number of branches, or ``one``.
        weights_per: One weight per stage for the ``batch``, or one for every ``sample``.
        feature_loss: How maps are compared: ``mse``, or ``pyramid``, ``cosine``, ``channel`` or
            ``relation`` of `dskd.losses.map_structure`.
        feature_scale: ``relative``: the MSE is divided by the mean square of the teacher's map.
            ``none``: a plain MSE.
        prediction_loss: Logit loss of the branches: ``kl`` (``kd`` means the same),
            ``kd-standardized`` (of three classes or more), ``dkd`` or ``dist``.
        prediction_options: Further settings of this loss, such as ``{"beta": 2.0}`` for dkd.
        deep_loss: Logit loss of the student's own logits, from the same list.
        deep_options: Further settings of this loss.

    Raises:
        InputError: A setting is out of range, or weights are per sample and a loss has no value per
            image.
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
        allocate: Allocate = "joint",
        allocation_scale: AllocationScale = "relative",
        allocation_basis: AllocationBasis = "loss",
        allocation_smoothing: Fraction = 0.0,
        weight_sum: WeightSum = "count",
        weights_per: WeightsPer = "batch",
        feature_loss: FeatureLoss = "mse",
        feature_scale: FeatureScale = "relative",
        prediction_loss: str = "kl",
        prediction_options: dict[str, Any] | None = None,
        deep_loss: str = "kd",
        deep_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        remembers = allocation_basis == "progress" or allocation_smoothing > 0
        if weights_per == "sample":
            _check_per_sample(prediction_loss, feature_loss, remembers)
        self.deep_loss = bind(deep_loss, temperature, deep_options or {})
        self.prediction_loss = bind(prediction_loss, temperature, prediction_options or {})
        self.feature_loss = bind_feature_loss(feature_loss, feature_scale)
        self.hard_labels = TARGET_SPLIT if "dkd" in (deep_loss, prediction_loss) else ""
        self.prediction_temperature = (prediction_options or {}).get("temperature", temperature)
        self.ce, self.kd, self.alpha, self.beta, self.gamma = ce, kd, alpha, beta, gamma
        self.standardizes = "kd-standardized" in (
            deep_loss if kd else "",
            prediction_loss if alpha else "",
        )
        self.separate = allocate == "separate"
        self.rule = allocation, tau, allocation_scale, weight_sum
        self.raw, self.per_sample = allocation_scale == "raw", weights_per == "sample"
        self.remembered = (allocation_basis, allocation_smoothing) if remembers else None
        self.history: nn.ModuleList | None = None

    @property
    def label_weight(self) -> float:
        """The larger of the two weights of the labels."""
        return max(self.ce, self.gamma)

    def remember(self, maps: int, predictions: int) -> None:
        """Creates the history of the losses, if the settings need one and it is not there.

        Args:
            maps: Number of maps.
            predictions: Number of predictions; a last map may have none.
        """
        if self.remembered is not None and self.history is None:
            counts = [predictions, maps] if self.separate else [maps]
            self.history = nn.ModuleList(
                AllocationHistory(count, *self.remembered) for count in counts
            )

    @in_full_precision
    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        branch_logits: Sequence[Tensor],
        branch_maps: Sequence[Tensor],
        teacher_maps: Sequence[Tensor],
        *,
        shares: tuple[float, float] = (1.0, 1.0),
        last_map_alone: bool = False,
        targets: Tensor | None = None,
    ) -> DSKDTerms:
        """The terms for a batch; see `dskd_loss` for the arguments.

        Args:
            student_logits: z_s.
            teacher_logits: z_t.
            labels: y.
            branch_logits: z_l.
            branch_maps: A_l(F_l).
            teacher_maps: F_t for each branch.
            shares: The shares of alpha and of beta that count.
            last_map_alone: Whether the last map has no logits; its prediction counts as 0.
            targets: What cross-entropies learn (see `dskd.losses.ce`); None for the labels.
        """
        targets = labels if targets is None else targets
        check_same_shape(student_logits, teacher_logits, "logits [B, K]")
        _check_branches(student_logits, branch_logits, branch_maps, teacher_maps, last_map_alone)
        self.remember(len(branch_maps), len(branch_logits))
        reduction: Reduction = "none" if self.per_sample else "mean"
        maps = zip(branch_maps, teacher_maps, strict=True)
        features = torch.stack([self.feature_loss(a, f, reduction) for a, f in maps])
        losses = [
            self.prediction_loss(z, teacher_logits, labels, reduction=reduction)
            for z in branch_logits
        ]
        predictions = _padded(torch.stack(losses), len(features))
        by_labels = self._by_labels(branch_logits, targets, reduction, len(features))
        by_logits, by_maps = self.alpha * shares[0] * predictions, self.beta * shares[1] * features
        if self.separate:
            basis = self._basis(predictions, by_labels)[: len(branch_logits)]
            weights = _padded(self._weights(basis, len(student_logits)), len(features))
            feature_weights = self._weights(features, len(student_logits), history=1)
            by_logits = by_logits if by_labels is None else by_logits + by_labels
            weighted = weights * by_logits + feature_weights * by_maps
        else:
            joint = by_logits + by_maps  # S_l
            joint = joint if by_labels is None else joint + by_labels
            weights = feature_weights = self._weights(joint, len(student_logits))
            weighted = weights * joint
        return DSKDTerms(
            ce=self.ce * cross_entropy(student_logits, targets),
            kd=self.kd * self.deep_loss(student_logits, teacher_logits, labels, reduction="mean"),
            shallow=weighted.sum(0).mean(),
            predictions=_over_images(predictions),
            features=_over_images(features),
            weights=_over_images(weights),
            feature_weights=_over_images(feature_weights),
        )

    def _basis(self, predictions: Tensor, by_labels: Tensor | None) -> Tensor:
        """The losses that the separate weights of predictions and labels depend on."""
        if not self.alpha and by_labels is not None:
            return by_labels / self.gamma  # predictions that are not learned decide nothing
        return predictions / (self.prediction_temperature**2 if self.raw else 1.0)

    def _by_labels(
        self, branch_logits: Sequence[Tensor], targets: Tensor, reduction: Reduction, rows: int
    ) -> Tensor | None:
        """The branches' losses of the labels; None if they have no weight."""
        if not self.gamma:
            return None
        entropies = torch.stack([cross_entropy(z, targets, reduction) for z in branch_logits])
        return self.gamma * _padded(entropies, rows)

    def _weights(self, losses: Tensor, images: int, history: int = 0) -> Tensor:
        """The weights of losses ``[N]``, or ``[N, B]`` if weights are per sample."""
        if self.per_sample:  # one process has all values of an image
            return allocate(losses, *self.rule)
        losses = distributed.weighted_mean(losses, images)
        if self.history is not None:
            losses = self.history[history](losses)
        return allocate(losses, *self.rule)


def _check_branches(
    student_logits: Tensor,
    branch_logits: Sequence[Tensor],
    branch_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    last_map_alone: bool,
) -> None:
    """Refuses lists of different lengths, and maps of other images."""
    lists = {"branch_maps": branch_maps, "teacher_maps": teacher_maps}
    if last_map_alone:
        check_lists(**lists)
        check_lists(branch_logits=branch_logits, branch_maps=branch_maps[:-1])
    else:
        check_lists(branch_logits=branch_logits, **lists)
    for maps in branch_maps:
        check_tensor(maps, "branch_maps [B, C, H, W]")
        check_images(maps, len(student_logits), "branch_maps [B, C, H, W]")


def _check_per_sample(prediction_loss: str, feature_loss: str, remembers: bool) -> None:
    """Refuses weights per sample for losses without a value per image."""
    if prediction_loss not in PER_SAMPLE:
        raise InputError(
            f"weights_per=sample needs a loss for every image, which {prediction_loss!r} "
            f"does not have; take weights_per=batch or one of {', '.join(sorted(PER_SAMPLE))}"
        )
    if feature_loss == "relation" or remembers:
        what = "feature_loss=relation" if feature_loss == "relation" else "a history of the losses"
        raise InputError(
            f"weights_per=sample needs a loss for every image, and {what} has one for the batch; "
            "take weights_per=batch"
        )


def _padded(values: Tensor, rows: int) -> Tensor:
    """The values, with rows of zeros for branches that have none."""
    if len(values) == rows:
        return values
    return torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])


def _over_images(values: Tensor) -> Tensor:
    """``[N]`` or ``[N, B]`` to ``[N]``, detached."""
    return values.detach().reshape(len(values), -1).mean(1)
