"""Check a given teacher: its accuracy on a sample of the test split, and its class order."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from scipy.special import betaincinv  # scipy.stats takes half a second to import

from dskd import methods
from dskd.config.schema import Recipe
from dskd.data.file_split import spread
from dskd.data.loader import DataLoaders
from dskd.engine.check.findings import TeacherFindings
from dskd.engine.prepare import Prepared
from dskd.engine.teacher_accuracy import examine_teacher
from dskd.engine.teacher_labels import label_held_out, one_class_warning
from dskd.errors import as_given
from dskd.teacher.frozen import FrozenTeacher

SAMPLE = 1000
"""Test images of the sample, at most."""
FEWEST = 64
"""Test images of the sample, however slow the teacher is."""
SECONDS = 8.0
"""Time for the sample."""
_TIMED = 8


@dataclass(frozen=True)
class TeacherCheck:
    """The findings about a teacher, and what they mean for the run.

    Attributes:
        findings: The findings; None for a method that needs no teacher.
        reason: Why the run should not be started; empty without a reason.
        warning: What to look at; empty if nothing is odd.
    """

    findings: TeacherFindings | None
    reason: str = ""
    warning: str = ""


def check_teacher(
    prepared: Prepared, teacher: FrozenTeacher | None, data: DataLoaders
) -> TeacherCheck:
    """Evaluates a teacher that is given.

    Args:
        prepared: The run.
        teacher: On the device of the data; None without one.
        data: The loaders of the run.
    """
    settings = prepared.recipe.teacher
    if teacher is None or settings is None or prepared.teacher is None:
        return TeacherCheck(None)
    if note := _not_evaluated(prepared, teacher):
        return TeacherCheck(TeacherFindings(settings.name, note=note))
    sample = _sample(teacher, data)
    if data.data.without_labels:
        label_held_out(teacher, sample)
        findings = TeacherFindings(settings.name, note="there are no labels")
        return TeacherCheck(findings, warning=one_class_warning(sample.data, settings.name))
    examined = examine_teacher(teacher, sample, settings)
    images = len(examined.predictions)
    low, high = accuracy_interval(round(examined.accuracy * images / 100), images)
    order = "another" if examined.order else "unknown" if examined.near else "as here"
    findings = TeacherFindings(settings.name, examined.accuracy, low, high, images, order)
    refused = examined.surely_near and not settings.trust and _reads_classes(prepared.recipe)
    if refused:
        return TeacherCheck(findings, reason=as_given(examined.reason(settings.name)))
    return TeacherCheck(findings, warning=as_given(examined.warning(settings.name)))


def accuracy_interval(hits: int, images: int) -> tuple[float, float]:
    """The 95 % confidence interval of an accuracy, in percent (Clopper and Pearson).

    Example:
        >>> [round(end, 1) for end in accuracy_interval(90, 100)]
        [82.4, 95.1]
    """
    low = betaincinv(hits, images - hits + 1, 0.025) if hits else 0.0
    high = betaincinv(hits + 1, images - hits, 0.975) if hits < images else 1.0
    return 100 * float(low), 100 * float(high)


def _not_evaluated(prepared: Prepared, teacher: FrozenTeacher) -> str:
    """Why the teacher is not evaluated; empty if it is."""
    assert prepared.teacher is not None
    assert prepared.recipe.teacher is not None
    if prepared.teacher.training is not None:
        return "it is trained first"
    if teacher.model.other_classes is not None:
        own = teacher.model.other_classes
        why = f"it has {own} other classes" if own else "its weights have no classifier"
        return f"{why}: its features alone are used"
    if prepared.recipe.teacher.head == "fit":
        return "its head is fitted first"
    return ""


def _reads_classes(recipe: Recipe) -> bool:
    method = recipe.method
    return methods.find(method.name).reads_classes(methods.resolve(method.name, method.options))


def _sample(teacher: FrozenTeacher, data: DataLoaders) -> DataLoaders:
    """The loaders with a sample of the test split, as large as the time allows."""
    test = data.data.test
    few = spread(len(test), _TIMED)
    teacher(test.images_at(few).to(data.test.device))  # the first call is slower
    start = time.perf_counter()
    teacher(test.images_at(few).to(data.test.device))[0].cpu()
    seconds = (time.perf_counter() - start) / len(few)
    size = max(FEWEST, min(SAMPLE, int(SECONDS / max(seconds, 1e-9))))
    part = test.take(spread(len(test), size))
    # The training images are not needed: a loader may copy all of them to the device.
    sampled = replace(data.data, train=part, test=part, validation=None, unlabelled=None)
    return DataLoaders(sampled, torch.device(data.test.device))
