"""Evaluate the teacher before the student's first step, and say what is odd about it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import bdtrc, betaincinv  # scipy.stats takes half a second to import
from torch import Tensor

from dskd.config.schema import Recipe, TeacherSettings
from dskd.data.loader import DataLoaders
from dskd.engine.evaluate import evaluate_accuracy, percent
from dskd.engine.natural_order import NATURAL, is_order_known, naturally_ordered
from dskd.engine.normalization import better_pixels
from dskd.errors import InputError, as_given
from dskd.storage.run_files import TeacherFile
from dskd.teacher.frozen import FrozenTeacher

log = logging.getLogger("dskd")

LEVEL = 0.05
"""A teacher is near chance if a guess is as accurate with at least this probability."""
SLIGHT = 0.2
"""Cohen's kappa below which two raters agree only slightly (Landis and Koch, Biometrics 33, 1977).
A teacher is refused if the test images show that its kappa is lower."""
_PERMUTED_LEVEL = 1e-4
_OTHER_CAUSES = (
    "likely causes: weights or classes of another task, or another mean and std; check "
    "teacher.checkpoint, teacher.mean and teacher.std"
)
_SHORT_TRAINING = (
    "likely cause: too little training; raise teacher.epochs, or give more or clearer images"
)
_TRUST = "set teacher.trust=true to use it all the same"


def evaluate_teacher(
    teacher: FrozenTeacher, data: DataLoaders, settings: TeacherSettings, *, refuse: bool
) -> None:
    """Evaluates a teacher on the test split, on which the student is evaluated, and prints it.

    A teacher that is no better than a guess is refused if `surely_near_chance` holds, else a
    warning says so. Both say whether other pixels, or its classes in another order, would explain
    it. No random generator is touched. The predictions stay in the teacher, so that the end of the
    run does not compute them again.

    Args:
        teacher: Gets its ``test_predictions``.
        data: On the device of the teacher.
        settings: Of the teacher.
        refuse: Whether it may be refused. If not, it is only warned about.

    Raises:
        InputError: The teacher is refused.
    """
    tested = examine_teacher(teacher, data, settings)
    name = settings.name
    log.info(
        "the teacher %s has a test accuracy of %.2f %% (%d images)",
        *(name, tested.accuracy, len(tested.predictions)),
    )
    if tested.surely_near and refuse:
        raise InputError(tested.reason(name))
    if warning := tested.warning(name):
        log.warning(as_given(warning))


@dataclass(frozen=True)
class ExaminedTeacher:
    """A teacher on test images, and what is odd about it.

    Attributes:
        accuracy: Top-1, in percent.
        predictions: int64 ``[N]``, the predicted class of each image.
        near: See `near_chance`.
        surely_near: See `surely_near_chance`.
        causes: Likely causes of chance where nothing else is found.
        pixels: Which other pixels the teacher knows; empty if these fit.
        order: Why its classes seem to be in another order; empty if they are not.
    """

    accuracy: float
    predictions: Tensor
    near: bool
    surely_near: bool
    causes: str
    pixels: str
    order: str

    def reason(self, name: str) -> str:
        """Why a teacher that is surely near chance is refused."""
        return (
            f"the teacher {name} is no better than a guess: its test accuracy is "
            f"{self.accuracy:.2f} % ({len(self.predictions)} images); "
            f"{self.pixels or self.order or self.causes}, or {_TRUST}"
        )

    def warning(self, name: str) -> str:
        """What is odd about the teacher; empty if nothing is."""
        if self.pixels:
            return f"the teacher {name} gets other pixels than it knows: {self.pixels}"
        if self.order:
            return f"the teacher {name} does not fit the classes: {self.order}"
        if self.near:
            return f"the teacher {name} is no better than a guess; {self.causes}"
        return ""


def examine_teacher(
    teacher: FrozenTeacher, data: DataLoaders, settings: TeacherSettings
) -> ExaminedTeacher:
    """Evaluates a teacher on the test split, and finds what is odd about it.

    No random generator is touched.

    Args:
        teacher: Gets its ``test_predictions``.
        data: On the device of the teacher.
        settings: Of the teacher.
    """
    device = data.test.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        result = evaluate_accuracy(
            teacher, lambda images: {"teacher": teacher(images).logits}, data.test
        )["teacher"]
        teacher.test_predictions = result.predictions
        pixels = better_pixels(teacher, settings, data) if settings.is_given else ""
    names = data.data.classes
    facts = result.predictions, data.test.labels.cpu(), len(names)
    return ExaminedTeacher(
        result.accuracy,
        result.predictions,
        near_chance(*facts),
        surely_near_chance(*facts),
        _OTHER_CAUSES if settings.is_given else _SHORT_TRAINING,
        pixels,
        _order_cause(result.predictions, facts[1], names, is_order_known(settings)),
    )


def _order_cause(predictions: Tensor, labels: Tensor, names: Sequence[str], is_known: bool) -> str:
    """What a teacher with its classes in another order predicts, and the fix; empty without one."""
    order = None if is_known else naturally_ordered(predictions, labels, names)
    whose = f", {NATURAL}" if order else ""
    order = order or likely_order(predictions, labels, len(names))
    if order is None:
        return ""
    moved = next(label for label in range(len(names)) if order[label] != label)
    return (
        f"likely cause: its classes are in another order{whose}: for {names[moved]!r} it predicts "
        f"class {order[moved]}, which is {names[order[moved]]!r} here; give the classes in its "
        "order with data.classes"
    )


def teacher_facts(
    teacher: FrozenTeacher | None, recipe: Recipe, data: DataLoaders
) -> dict[str, Any] | None:
    """How good the teacher of a run is, see `dskd.storage.run_files.TeacherFile`.

    Returns:
        Plain values; None without a teacher, or if it was not evaluated.
    """
    if teacher is None or teacher.test_predictions is None or recipe.teacher is None:
        return None
    predictions, labels = teacher.test_predictions, data.test.labels.cpu()
    return TeacherFile(
        name=recipe.teacher.name,
        test_accuracy=percent(predictions == labels),
        test_images=len(labels),
        near_chance=near_chance(predictions, labels, len(data.data.classes)),
    ).model_dump()


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
    hits = int((predictions == labels).sum())
    return _at_least(hits, len(labels), _guess(predictions, labels, classes)) >= LEVEL


def surely_near_chance(predictions: Tensor, labels: Tensor, classes: int) -> bool:
    """Whether a teacher near chance is known to be so: the images would show one that is not.

    ``kappa = (accuracy - guess) / (1 - guess)`` is 0 for a guess and 1 without an error (Cohen
    1960). The upper limit of its 95 % confidence interval (Clopper and Pearson) must be below
    `SLIGHT`. At chance this takes about 20 images of ten classes, or 100 of two.

    Args:
        predictions: As for `near_chance`.
        labels: As for `near_chance`.
        classes: As for `near_chance`.

    Example:
        >>> labels = torch.arange(100) % 4
        >>> guesses = torch.zeros_like(labels)
        >>> surely_near_chance(guesses, labels, 4), surely_near_chance(guesses[:8], labels[:8], 4)
        (True, False)
    """
    if not near_chance(predictions, labels, classes):
        return False
    guess = _guess(predictions, labels, classes)
    hits, images = int((predictions == labels).sum()), len(labels)
    highest = betaincinv(hits + 1, images - hits, 0.975) if hits < images else 1.0
    return bool(highest < guess + SLIGHT * (1 - guess))


def _at_least(hits: int, images: int, probability: float) -> float:
    """The probability that a guess is right for at least ``hits`` of the images (binomial)."""
    return float(bdtrc(hits - 1, images, probability)) if hits else 1.0


def _guess(predictions: Tensor, labels: Tensor, classes: int) -> float:
    """The accuracy of a guess that draws from the classes as often as the teacher predicts them."""
    counts = [torch.bincount(part, minlength=classes).double() for part in (predictions, labels)]
    return float((counts[0] * counts[1]).sum()) / len(labels) ** 2


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
        >>> likely_order(torch.tensor([1]), torch.tensor([0]), 3)  # too few images
    """
    by_class = torch.argsort(labels, stable=True)
    fitted, tested = by_class[::2], by_class[1::2]
    own = int((predictions[tested] == labels[tested]).sum())
    if 2 * own > len(tested):
        return None  # no order is twice as accurate
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels[fitted].numpy(), predictions[fitted].numpy()), 1)
    _, order = linear_sum_assignment(confusion, maximize=True)
    reordered = torch.from_numpy(np.argsort(order))[predictions[tested]]
    hits = int((reordered == labels[tested]).sum())
    if hits < 2 * max(own, 1):
        return None
    guess = _guess(reordered, labels[tested], classes)
    if _at_least(hits, len(tested), guess) > _PERMUTED_LEVEL:
        return None
    return [int(label) for label in order]
