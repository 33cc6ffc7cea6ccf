"""The errors of a student on the test split: confused classes, and the most confident errors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from dskd.data import Dataset
from dskd.data.dataset import Samples
from dskd.engine.evaluate import PIXELS
from dskd.models.staged_model import StagedModel
from dskd.report.disagreements import LARGEST, data_uri

MATRIX_CLASSES, CONFUSED_PAIRS, WORST = 40, 15, 12
"""More classes than `MATRIX_CLASSES` do not fit into a readable matrix."""


@dataclass(frozen=True)
class WorstError:
    """A test image with a wrong prediction.

    Attributes:
        index: Its index in the test split.
        file: The name of its file; empty without one.
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
        classes: The names of the classes in the matrix.
        matrix: Number of images by class (row) and predicted class (column); empty with more than
            `MATRIX_CLASSES` classes.
        confused: The most frequent errors: class, predicted class, number of images, and share of
            the images of the class in percent.
        worst: The errors with the highest probability, highest first.
    """

    label: str
    seed: int
    test_images: int
    count: int
    classes: tuple[str, ...]
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
    test, classes = data.test, data.classes
    probabilities, predicted = _predictions(student, test)
    wrong = torch.nonzero(predicted != test.labels).flatten()
    pairs = Counter(zip(test.labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    sizes = torch.bincount(test.labels, minlength=len(classes)).tolist()
    order = probabilities[wrong].argsort(descending=True, stable=True)
    return Mistakes(
        label=label,
        seed=seed,
        test_images=len(test),
        count=len(wrong),
        classes=tuple(classes),
        matrix=_matrix(test.labels, predicted, len(classes)),
        confused=tuple(
            (classes[a], classes[b], count, 100 * count / sizes[a])
            for (a, b), count in pairs.most_common(CONFUSED_PAIRS)
        ),
        worst=tuple(
            _worst_error(index, predicted, probabilities, data)
            for index in wrong[order[:WORST]].tolist()
        ),
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


def _matrix(labels: Tensor, predicted: Tensor, classes: int) -> tuple[tuple[int, ...], ...]:
    if classes > MATRIX_CLASSES:
        return ()
    counts = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    return tuple(tuple(row) for row in counts.view(classes, classes).tolist())


def _worst_error(index: int, predicted: Tensor, probabilities: Tensor, data: Dataset) -> WorstError:
    test = data.test
    return WorstError(
        index,
        test.names[index] if test.names else "",
        data.classes[int(test.labels[index])],
        data.classes[int(predicted[index])],
        100 * float(probabilities[index]),
        data_uri(test.images_at(torch.tensor([index]))[0]),
        max(data.shape[1:]) < LARGEST,
    )
