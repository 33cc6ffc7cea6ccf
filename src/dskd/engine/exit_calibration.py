"""Calibrate early exits on validation images: their temperatures and their thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.models.early_exits import NEVER, ExitCosts
from dskd.storage.exit_file import Policy

BOUNDS = 0.05, 20.0
"""The least and the largest temperature. Without bounds, logits that are always right or that tell
nothing would have none."""
_LEVELS, _MOST_LEVELS = 160, 40
"""Thresholds that are tried: of all exits together, and of one exit."""
_BINS = 15


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    r"""The temperature with the least cross-entropy, ``min_T mean -log softmax(z / T)_y``.

    The cross-entropy is convex in ``1 / T``, so there is one minimum.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599. The
    bounds are *our choice*.

    Args:
        logits: z, ``[N, K]``.
        labels: y, int64, ``[N]``.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> temperature = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
        >>> round((logits / temperature).softmax(1)[0, 0].item(), 3)  # right three times in four
        0.75
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()
    low, high = (1 / bound for bound in reversed(BOUNDS))
    found = minimize_scalar(
        lambda inverse: F.cross_entropy(logits * float(inverse), labels).item(),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return 1 / float(found.x)


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    r"""The expected calibration error in percent: ``sum_b n_b / N |accuracy_b - confidence_b|``.

    The bins b divide the confidences from 0 to 1 into 15 equal parts.

    Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017, arXiv 1706.04599, equation 3.

    Args:
        logits: ``[N, K]``.
        labels: int64, ``[N]``.

    Example:
        >>> calibration_error(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        0.0
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    bins = (confidence * _BINS).long().clamp_max(_BINS - 1)
    gaps = torch.zeros(_BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, (predicted == labels).double() - confidence)
    return 100 * float(gaps.abs().sum()) / len(labels)


@dataclass(frozen=True)
class ExitPredictions:
    """What each exit, and at last the student, predicts for the validation images.

    Attributes:
        confidences: Of each exit, calibrated, float ``[N, E]``.
        correct: Whether each exit and the student are right, bool ``[N, E + 1]``.
        costs: Multiply-adds.
    """

    confidences: Tensor
    correct: Tensor
    costs: ExitCosts

    def measure(self, thresholds: Sequence[float]) -> tuple[float, float]:
        """Accuracy in percent, and mean multiply-adds for an image."""
        exits = chosen_exits(self.confidences, thresholds)
        right = self.correct.gather(1, exits[:, None]).double().mean()
        paths = torch.tensor(self.costs.paths(thresholds), dtype=torch.float64)
        return 100 * float(right), float(paths[exits].mean())

    def policy(self, thresholds: Sequence[float]) -> Policy:
        """Thresholds with what they give."""
        accuracy, cost = self.measure(thresholds)
        return Policy(thresholds=tuple(thresholds), val_accuracy=accuracy, multiply_adds=cost)


def chosen_exits(confidences: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The exit that predicts for each image: the first confident one, or E for the student.

    Args:
        confidences: ``[N, E]``.
        thresholds: One for each exit.

    Example:
        >>> chosen_exits(torch.tensor([[0.9, 0.2], [0.5, 0.8], [0.5, 0.2]]), [0.9, 0.7]).tolist()
        [0, 1, 2]
    """
    passes = confidences >= confidences.new_tensor(list(thresholds))
    student = passes.new_ones(len(passes), 1)
    return torch.cat([passes, student], 1).int().argmax(1)


def find_policies(predictions: ExitPredictions) -> list[Policy]:
    """Policies from the plain student to ever cheaper ones.

    The search begins with thresholds that no image passes. In each step it lowers one threshold, to
    the level where the lost accuracy is smallest for each multiply-add that is saved. The levels of
    an exit are quantiles of its confidences. Of all policies on this way, those stay that no
    cheaper one equals in accuracy.

    Args:
        predictions: For the validation images.
    """
    exits = predictions.confidences.shape[1]
    count = max(8, min(_MOST_LEVELS, _LEVELS // exits))
    levels = [_levels(predictions.confidences[:, exit_], count) for exit_ in range(exits)]
    places = [0] * exits
    now = predictions.policy([NEVER] * exits)
    visited = [now]
    while (step := _best_step(predictions, levels, places, now)) is not None:
        exit_, place = step
        for between in range(places[exit_] + 1, place + 1):
            places[exit_] = between
            now = predictions.policy([own[at] for own, at in zip(levels, places, strict=True)])
            visited.append(now)
    return _cheaper_and_cheaper(visited)


def _levels(confidences: Tensor, count: int) -> list[float]:
    """Thresholds of an exit, falling from one that no image passes to 0, which all pass."""
    quantiles = torch.linspace(1, 0, count, dtype=torch.float64)
    found = torch.quantile(confidences.double(), quantiles, interpolation="higher").tolist()
    return [NEVER, *dict.fromkeys(min(value, 1.0) for value in found if value > 0), 0.0]


def _best_step(
    predictions: ExitPredictions, levels: list[list[float]], places: list[int], now: Policy
) -> tuple[int, int] | None:
    """The exit whose threshold falls next, and to which level; None if no step saves anything."""
    best: tuple[float, int, int] | None = None
    thresholds = [own[at] for own, at in zip(levels, places, strict=True)]
    for exit_, own in enumerate(levels):
        for place in range(places[exit_] + 1, len(own)):
            tried = [*thresholds[:exit_], own[place], *thresholds[exit_ + 1 :]]
            accuracy, cost = predictions.measure(tried)
            saved = now.multiply_adds - cost
            if saved <= 0:
                continue
            slope = (now.val_accuracy - accuracy) / saved
            if best is None or slope < best[0]:
                best = slope, exit_, place
    return best[1:] if best is not None else None


def _cheaper_and_cheaper(policies: Sequence[Policy]) -> list[Policy]:
    """The plain student, then policies that are cheaper and less accurate than all before.

    A policy that is cheaper and no less accurate than another takes its place.
    """
    plain, *others = policies
    kept: list[Policy] = []
    best = -math.inf
    for policy in sorted(others, key=lambda one: (one.multiply_adds, -one.val_accuracy)):
        if policy.multiply_adds < plain.multiply_adds and policy.val_accuracy > best:
            kept.append(policy)
            best = policy.val_accuracy
    return [plain, *reversed(kept)]
