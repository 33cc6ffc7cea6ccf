"""Test images that a student and its teacher classify differently."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch
from PIL import Image
from torch import Tensor

from dskd.data import Dataset
from dskd.data.dataset import Samples
from dskd.engine.evaluate import evaluate_accuracy
from dskd.models.staged_model import StagedModel

PAIRS, EXAMPLES = 10, 4
LARGEST = 96
"""Side of an embedded image in pixels."""


@dataclass(frozen=True)
class ExampleImage:
    """A test image that the two models classify differently.

    Attributes:
        index: Its index in the test split.
        file: The path of its file; empty without one.
        label: The name of its class; empty without a label.
        source: The image as a data URI.
        small: Whether it is so small that the page enlarges it without smoothing.
    """

    index: int
    file: str
    label: str
    source: str
    small: bool


@dataclass(frozen=True)
class ClassPair:
    """The test images for which the teacher predicts one class and the student another.

    Attributes:
        teacher: The class that the teacher predicts.
        student: The class that the student predicts.
        count: Number of images.
        teacher_right: Number of images on which the teacher is right; None without labels.
        student_right: Number of images on which the student is right; None without labels.
        examples: A few of the images.
    """

    teacher: str
    student: str
    count: int
    teacher_right: int | None
    student_right: int | None
    examples: tuple[ExampleImage, ...]


@dataclass(frozen=True)
class Disagreements:
    """All test images that student and teacher classify differently.

    Attributes:
        label: Label of the student's method.
        seed: Seed of its run.
        test_images: Size of the test split.
        count: Number of images that are classified differently.
        teacher_right: Number of those on which the teacher is right; None without labels.
        student_right: Number of those on which the student is right; None without labels.
        pairs: The most frequent pairs of predicted classes, most frequent first.
        num_pairs: Number of different pairs.
    """

    label: str
    seed: int
    test_images: int
    count: int
    teacher_right: int | None
    student_right: int | None
    pairs: tuple[ClassPair, ...]
    num_pairs: int


def find_disagreements(
    label: str, seed: int, student: StagedModel, teacher: StagedModel, data: Dataset
) -> Disagreements:
    """Compares the predictions of two models on the test split.

    Args:
        label: Label of the student's method.
        seed: Seed of its run.
        student: In eval mode, on any device.
        teacher: In eval mode, on any device.
        data: The images.
    """
    test = data.test
    predicted = [_predictions(model, test) for model in (teacher, student)]
    differ = torch.nonzero(predicted[0] != predicted[1]).flatten()
    pairs = Counter(
        zip(predicted[0][differ].tolist(), predicted[1][differ].tolist(), strict=True)
    ).most_common()
    teacher_right, student_right = (
        int((one[differ] == test.labels[differ]).sum()) for one in predicted
    )
    return Disagreements(
        label=label,
        seed=seed,
        test_images=len(test),
        count=len(differ),
        teacher_right=None if data.without_labels else teacher_right,
        student_right=None if data.without_labels else student_right,
        pairs=tuple(_class_pair(a, b, predicted, data) for (a, b), _ in pairs[:PAIRS]),
        num_pairs=len(pairs),
    )


def _predictions(model: StagedModel, split: Samples) -> Tensor:
    loader = split.loader(model.mean.device)
    evaluated = evaluate_accuracy(model, lambda images: {"model": model(images).logits}, loader)
    return evaluated["model"].predictions


def _class_pair(
    teacher: int, student: int, predicted: Sequence[Tensor], data: Dataset
) -> ClassPair:
    indices = torch.nonzero((predicted[0] == teacher) & (predicted[1] == student)).flatten()
    labels = data.test.labels[indices]
    examples = [
        ExampleImage(
            index,
            file_of(index, data),
            "" if data.without_labels else data.classes[label],
            data_uri(data.test.images_at(torch.tensor([index]))[0]),
            max(data.shape[1:]) < LARGEST,
        )
        for index, label in zip(
            indices[:EXAMPLES].tolist(), labels[:EXAMPLES].tolist(), strict=True
        )
    ]
    return ClassPair(
        data.classes[teacher],
        data.classes[student],
        len(indices),
        None if data.without_labels else int((labels == teacher).sum()),
        None if data.without_labels else int((labels == student).sum()),
        tuple(examples),
    )


def file_of(index: int, data: Dataset) -> str:
    """The path of the file of a test image; empty if it does not come from a file of its own.

    Args:
        index: Of the image.
        data: The images.
    """
    names = data.test.names if data.names_are_files else ()
    return names[index] if names else ""


def from_class_folder(file: str, label: str) -> str:
    """The path of a file from the folder of its class on, as other folders may have its name, too.

    Args:
        file: The whole path.
        label: The name of the class. If no folder is called so, the whole path is shown.

    Example:
        >>> from_class_folder("test/cat/0.png", "cat"), from_class_folder("scans/7/0.png", "cat")
        ('cat/0.png', 'scans/7/0.png')
    """
    parts = PurePath(file).parts
    return "/".join(parts[parts[:-1].index(label) :]) if label in parts[:-1] else file


def data_uri(image: Tensor) -> str:
    """An image as a PNG in a data URI, reduced in size if it is large.

    Args:
        image: uint8 ``[C, H, W]``. Unless it has three channels, the first one is shown.
    """
    channels = image if len(image) == 3 else image[:1]
    return png_uri(Image.fromarray(channels.permute(1, 2, 0).squeeze(2).numpy()))


def png_uri(image: Image.Image, largest: int = LARGEST) -> str:
    """An image as a PNG in a data URI.

    Args:
        image: The image; it stays as it is.
        largest: Longest side; a larger image is reduced in size.
    """
    thumbnail = image.copy()
    thumbnail.thumbnail((largest, largest))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
