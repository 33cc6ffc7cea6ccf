"""What cross-entropies learn in place of plain labels: smoothed, and weighted by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.config.train_settings import TrainSettings
from dskd.data.loader import NO_LABEL, Batch
from dskd.errors import InputError
from dskd.methods.base import Method


@dataclass(frozen=True)
class SoftTargets:
    """Turns the labels of a batch into soft targets ``w_k ((1 - s) y_k + s / K)``.

    The loss of an image is ``-sum_k t_k log p_k``, and that of a batch is the mean over its images,
    also with class weights. So a batch in parts has the loss of the whole batch.

    Images without a label have targets of 0, and the targets of the others are scaled up, so that
    the mean over all images is that over those with a label (`Batch.label_scale`).

    Source: Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, arXiv 1512.00567,
    section 7, for the smoothing.

    Args:
        classes: K.
        smoothing: s, from 0, below 1.
        weights: w, float32 ``[K]``; None for 1.

    Example:
        >>> SoftTargets(4, 0.2).of(torch.tensor([1]))
        tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
    """

    classes: int
    smoothing: float = 0.0
    weights: Tensor | None = None

    def of(self, targets: Tensor) -> Tensor:
        """The soft targets ``[B, K]`` of labels ``[B]``, or of soft targets."""
        if not targets.is_floating_point():
            # An image without a label has any class here; its row is set to 0 later.
            targets = F.one_hot(targets.clamp_min(0), self.classes).float()
        smoothed = (1 - self.smoothing) * targets + self.smoothing / self.classes
        return smoothed if self.weights is None else smoothed * self.weights

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its targets. Without a setting, a batch keeps those that it has."""
        if batch.kinds is None:
            if not self.smoothing and self.weights is None:
                return batch
            return replace(batch, soft_targets=self.of(batch.targets))
        has_label = (batch.labels != NO_LABEL)[:, None]
        return replace(batch, soft_targets=self.of(batch.targets) * has_label * batch.label_scale)


@dataclass(frozen=True)
class NoTargets:
    """Gives batches in which no image has a label targets of 0: each cross-entropy is 0.

    Args:
        classes: K.
    """

    classes: int

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its targets."""
        zeros = torch.zeros(len(batch.labels), self.classes, device=batch.labels.device)
        return replace(batch, soft_targets=zeros, kinds=(0, batch.global_size))


def soft_targets(settings: TrainSettings, labels: Tensor, classes: int) -> SoftTargets:
    """The targets of a recipe.

    Args:
        settings: Of the training.
        labels: int64 ``[N]``, of the training images, on the device that trains; those that an
            image without a label has in place of one do not count.
        classes: Number of classes.

    Raises:
        InputError: There are more or fewer class weights than classes.
    """
    weights = settings.class_weights
    if isinstance(weights, Sequence) and not isinstance(weights, str) and len(weights) != classes:
        raise InputError(
            f"train.class_weights has {len(weights)} weights, and there are {classes} classes; "
            "give one for each, in the order of the classes"
        )
    if weights == "balanced":
        known = labels[labels != NO_LABEL].cpu()
        found: Tensor | None = balanced(known, classes).to(labels.device)
    else:
        found = None if weights is None else torch.tensor(weights, device=labels.device)
    return SoftTargets(classes, settings.label_smoothing, found)


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Weights with which every class counts the same: ``n / (c n_k)``, their mean over images is 1.

    ``n_k`` of the ``n`` images have class k, and ``c`` classes have images; the others get 0.

    Example:
        >>> balanced(torch.tensor([0, 0, 0, 2]), 3)
        tensor([0.6667, 0.0000, 2.0000])
    """
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp_min(1)), 0.0).float()


def check_learns_labels(settings: TrainSettings, method: Method, name: str) -> None:
    """Refuses settings of the labels for a method that does not learn from them.

    Raises:
        InputError: A setting would have no effect.
    """
    for key, wanted in (
        ("label_smoothing", settings.label_smoothing > 0),
        ("class_weights", settings.class_weights is not None),
    ):
        if wanted and not method.learns_labels:
            raise InputError(
                f"train.{key} changes the cross-entropy with the labels, which has no weight in "
                f"the method {name!r} as it is set; drop it or set method.ce"
            )
