"""Evaluate the teacher before the student's first step, and say what is odd about it."""

from __future__ import annotations

import logging

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor

from dskd.data.loader import DataLoaders
from dskd.engine.evaluate import evaluate_accuracy
from dskd.teacher.frozen import FrozenTeacher

log = logging.getLogger("dskd")

LEVEL = 0.05
"""A teacher is near chance if a guess is as accurate with at least this probability."""
_PERMUTED_LEVEL = 1e-4


def evaluate_teacher(teacher: FrozenTeacher, data: DataLoaders, name: str) -> None:
    """Evaluates a teacher on the test split, on which the student is evaluated, and prints it.

    A warning says if the teacher is near chance, and whether its classes in another order would
    explain that. No random generator is touched. The predictions stay in the teacher, so that the
    end of the run does not compute them again.

    Args:
        teacher: Gets its ``test_predictions``.
        data: On the device of the teacher.
        name: Of the teacher, for the line.
    """
    device = data.test.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        result = evaluate_accuracy(
            teacher, lambda images: {"teacher": teacher(images).logits}, data.test
        )["teacher"]
    teacher.test_predictions = result.predictions
    labels, classes = data.test.labels.cpu(), len(data.data.classes)
    log.info(
        "the teacher %s has a test accuracy of %.2f %% (%d images)",
        *(name, result.accuracy, len(labels)),
    )
    if order := likely_order(result.predictions, labels, classes):
        names = data.data.classes
        moved = next(label for label in range(classes) if order[label] != label)
        log.warning(
            "the teacher %s seems to have its classes in another order: for %r it predicts class "
            "%d, which is %r here; give the classes in its order with data.classes",
            *(name, names[moved], order[moved], names[order[moved]]),
        )
    elif near_chance(result.predictions, labels, classes):
        log.warning(
            "the teacher %s is no better than a guess; likely causes: weights or classes of "
            "another task, or another mean and std (teacher.mean, teacher.std)",
            name,
        )


def near_chance(predictions: Tensor, labels: Tensor, classes: int) -> bool:
    """Whether a guess would be as accurate with a probability of at least `LEVEL`.

    A guess draws from the classes as often as the teacher predicts them, so that a teacher that
    always predicts the largest class is near chance, too.

    Args:
        predictions: int64 ``[N]``.
        labels: int64 ``[N]``.
        classes: Number of classes K.

    Example:
        >>> labels = torch.arange(100) % 4
        >>> near_chance(labels, labels, 4), near_chance(torch.zeros_like(labels), labels, 4)
        (False, True)
    """
    counts = [torch.bincount(part, minlength=classes).double() for part in (predictions, labels)]
    guess = float((counts[0] * counts[1]).sum()) / len(labels) ** 2
    hits = int((predictions == labels).sum())
    return bool(binom.sf(hits - 1, len(labels), guess) >= LEVEL)


def likely_order(predictions: Tensor, labels: Tensor, classes: int) -> list[int] | None:
    """The order of the teacher's classes, if another one than the data set's explains its errors.

    The order is fitted to every second image of each class and tested on the others, where it
    must be at least twice as accurate as the teacher, and better than a guess.

    Args:
        predictions: int64 ``[N]``.
        labels: int64 ``[N]``.
        classes: Number of classes K.

    Returns:
        The teacher's number of each class; None if no order explains the errors.

    Example:
        >>> labels = torch.arange(90) % 3
        >>> likely_order((labels + 1) % 3, labels, 3), likely_order(labels, labels, 3)
        ([1, 2, 0], None)
    """
    by_class = torch.argsort(labels, stable=True)
    fitted, tested = by_class[::2], by_class[1::2]
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels[fitted].numpy(), predictions[fitted].numpy()), 1)
    _, order = linear_sum_assignment(confusion, maximize=True)
    hits = int((torch.from_numpy(order)[labels[tested]] == predictions[tested]).sum())
    own = int((predictions[tested] == labels[tested]).sum())
    if hits < 2 * max(own, 1) or binom.sf(hits - 1, len(tested), 1 / classes) > _PERMUTED_LEVEL:
        return None
    return [int(label) for label in order]
