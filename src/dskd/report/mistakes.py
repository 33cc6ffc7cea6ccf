"""The errors of a student on the test split: confused classes, and the most confident errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dskd.data import Dataset
from dskd.data.dataset import Samples
from dskd.engine.evaluate import PIXELS
from dskd.models.staged_model import StagedModel
from dskd.report.disagreements import LARGEST, data_uri, file_of

MATRIX_CLASSES, MOST_CONFUSED, CONFUSED_PAIRS, WORST = 40, 20, 15, 12
"""Of more than `MATRIX_CLASSES` classes, the matrix has the `MOST_CONFUSED`."""
OTHERS = "other classes"


@dataclass(frozen=True)
class WorstError:
    """A test image with a wrong prediction.

    Attributes:
        index: Its index in the test split.
        file: The path of its file; empty without one.
        label: The name of its class.
        predicted: The class that the student predicts.
        probability: The probability that the student gives to the predicted class, in percent.
        source: The image as a data URI.
        small: Whether it is so small that the page enlarges it without smoothing.
    """

    index: int
    file: str
    label: str
    predicted: str
    probability: float
    source: str
    small: bool


@dataclass(frozen=True)
class Mistakes:
    """The errors of one student.

    Attributes:
        label: Label of the student's method.
        seed: Seed of its run.
        test_images: Size of the test split.
        count: Number of wrong predictions.
        class_accuracy: The accuracy of each class in percent by name, lowest first; of the classes
            that have test images.
        rows: The names of the classes of the matrix. Of more than `MATRIX_CLASSES` classes, these
            are the most confused ones, which share the most frequent errors.
        columns: The same, and `OTHERS` if the matrix does not have all classes.
        matrix: Number of images by class (row) and predicted class (column).
        confused: The most frequent errors: class, predicted class, number of images, and share of
            the images of the class in percent.
        worst: The errors with the highest probability, highest first; of images alone.
    """

    label: str
    seed: int
    test_images: int
    count: int
    class_accuracy: tuple[tuple[str, float], ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]
    confused: tuple[tuple[str, str, int, float], ...]
    worst: tuple[WorstError, ...]


def find_mistakes(label: str, seed: int, student: StagedModel, data: Dataset) -> Mistakes:
    """Finds the errors of a student on the test split.

    Args:
        label: Label of the student's method.
        seed: Seed of its run.
        student: In eval mode, on any device.
        data: The images, in memory or streamed.
    """
    probabilities, predicted = _predictions(student, data.test)
    wrong = torch.nonzero(predicted != data.test.labels).flatten()
    order = probabilities[wrong].argsort(descending=True, stable=True)
    worst = tuple(
        _worst_error(index, predicted, probabilities, data)
        for index in wrong[order[:WORST]].tolist()
    )
    found = mistakes_of(label, seed, data.test.labels, predicted, data.classes)
    return replace(found, worst=worst)


def mistakes_of(
    label: str, seed: int, labels: Tensor, predicted: Tensor, classes: Sequence[str]
) -> Mistakes:
    """Counts the errors of predictions on a test split, without the most confident ones.

    Args:
        label: Label of the student's method.
        seed: Seed of its run.
        labels: int64 ``[N]``.
        predicted: int64 ``[N]``, the predicted classes.
        classes: The names of the classes.

    Example:
        >>> found = mistakes_of("kd", 0, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), "ab")
        >>> found.matrix, found.confused
        (((1, 1), (0, 1)), (('a', 'b', 1, 50.0),))
    """
    wrong = predicted != labels
    errors = zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True)
    pairs = Counter(errors).most_common()
    sizes = torch.bincount(labels, minlength=len(classes)).tolist()
    shown = _shown_classes([pair for pair, _ in pairs], len(classes))
    names = tuple(classes[one] for one in shown)
    return Mistakes(
        label=label,
        seed=seed,
        test_images=len(labels),
        count=int(wrong.sum()),
        class_accuracy=_class_accuracy(labels, predicted, classes),
        rows=names,
        columns=names if len(shown) == len(classes) else (*names, OTHERS),
        matrix=_matrix(labels, predicted, shown, len(classes)),
        confused=tuple(
            (classes[a], classes[b], count, 100 * count / sizes[a])
            for (a, b), count in pairs[:CONFUSED_PAIRS]
        ),
        worst=(),
    )


@torch.no_grad()
def _predictions(student: StagedModel, split: Samples) -> tuple[Tensor, Tensor]:
    """The largest probability of each image, and its class."""
    loader = split.loader(student.mean.device)
    height, width = split.sample_shape[1:]
    batch_size = max(1, min(500, PIXELS[loader.device.type] // (height * width)))
    found = [
        torch.stack([one.cpu().double() for one in student(images).logits.softmax(1).max(1)])
        for images, _ in loader.in_order(batch_size)
    ]
    probabilities, predicted = torch.cat(found, dim=1)
    return probabilities, predicted.long()


def _class_accuracy(
    labels: Tensor, predicted: Tensor, classes: Sequence[str]
) -> tuple[tuple[str, float], ...]:
    sizes = torch.bincount(labels, minlength=len(classes)).tolist()
    right = torch.bincount(labels[labels == predicted], minlength=len(classes)).tolist()
    found = [
        (name, 100 * hits / size)
        for name, hits, size in zip(classes, right, sizes, strict=True)
        if size
    ]
    return tuple(sorted(found, key=lambda one: one[1]))


def _shown_classes(pairs: Sequence[tuple[int, int]], classes: int) -> list[int]:
    """All classes, or of many those of the first pairs, which stay side by side."""
    if classes <= MATRIX_CLASSES:
        return list(range(classes))
    return list(dict.fromkeys(one for pair in pairs for one in pair))[:MOST_CONFUSED]


def _matrix(
    labels: Tensor, predicted: Tensor, shown: Sequence[int], classes: int
) -> tuple[tuple[int, ...], ...]:
    """The counts of the shown classes, and of all others in a last column if there are any."""
    width = len(shown) + (len(shown) < classes)
    column = torch.full((classes,), len(shown))
    column[shown] = torch.arange(len(shown))
    rows = (torch.bincount(column[predicted[labels == one]], minlength=width) for one in shown)
    return tuple(tuple(row.tolist()) for row in rows)


def _worst_error(index: int, predicted: Tensor, probabilities: Tensor, data: Dataset) -> WorstError:
    test = data.test
    return WorstError(
        index,
        file_of(index, data),
        data.classes[int(test.labels[index])],
        data.classes[int(predicted[index])],
        100 * float(probabilities[index]),
        data_uri(test.images_at(torch.tensor([index]))[0]),
        max(data.shape[1:]) < LARGEST,
    )
