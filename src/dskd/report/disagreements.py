"""Where a student differs from its teacher: which classes, who is right, which images."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dskd.data import Dataset, Split
from dskd.data.loader import MemoryLoader
from dskd.engine.evaluate import evaluate_accuracy
from dskd.models.staged_model import StagedModel

PAIRS, EXAMPLES = 10, 4
_LARGEST = 96
"""Side of an embedded image in pixels."""


@dataclass(frozen=True)
class Example:
    """A test image that the two name differently.

    Attributes:
        index: In the test split.
        label: The name of its class.
        source: The image as a data URI.
        small: Whether it is so small that its pixels are to be seen.
    """

    index: int
    label: str
    source: str
    small: bool


@dataclass(frozen=True)
class ClassPair:
    """The images that the teacher gives one class and the student another.

    Attributes:
        teacher: The class that the teacher says.
        student: The class that the student says.
        count: How many images.
        teacher_right: In how many of them the teacher is right.
        student_right: In how many the student is; in the rest neither is.
        examples: A few of them.
    """

    teacher: str
    student: str
    count: int
    teacher_right: int
    student_right: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Differences:
    """All test images that student and teacher name differently.

    Attributes:
        label: Of the student's method.
        seed: Of its run.
        images: Of the test split.
        count: How many are named differently.
        teacher_right: In how many of them the teacher is right.
        student_right: In how many the student is.
        pairs: The most frequent pairs of classes, most frequent first.
        kinds: How many pairs of classes there are.
    """

    label: str
    seed: int
    images: int
    count: int
    teacher_right: int
    student_right: int
    pairs: tuple[ClassPair, ...]
    kinds: int


def differences(
    label: str, seed: int, student: StagedModel, teacher: StagedModel, data: Dataset
) -> Differences:
    """Where the two differ on the test split.

    Args:
        label: Of the student's method.
        seed: Of its run.
        student: In eval mode, on any device.
        teacher: The same.
        data: The images.
    """
    test = data.test
    said = [_predictions(model, test) for model in (teacher, student)]
    differ = torch.nonzero(said[0] != said[1]).flatten()
    pairs = Counter(
        zip(said[0][differ].tolist(), said[1][differ].tolist(), strict=True)
    ).most_common()
    teacher_right, student_right = (int((one[differ] == test.labels[differ]).sum()) for one in said)
    return Differences(
        label=label,
        seed=seed,
        images=len(test),
        count=len(differ),
        teacher_right=teacher_right,
        student_right=student_right,
        pairs=tuple(_class_pair(a, b, said, data) for (a, b), _ in pairs[:PAIRS]),
        kinds=len(pairs),
    )


def _predictions(model: StagedModel, split: Split) -> Tensor:
    resident = MemoryLoader(split, model.mean.device)
    return evaluate_accuracy(model, lambda images: {"one": model(images).logits}, resident)[
        "one"
    ].predictions


def _class_pair(teacher: int, student: int, said: Sequence[Tensor], data: Dataset) -> ClassPair:
    indices = torch.nonzero((said[0] == teacher) & (said[1] == student)).flatten()
    labels = data.test.labels[indices]
    examples = [
        Example(
            index,
            data.classes[label],
            data_uri(data.test.images[index]),
            max(data.shape[1:]) < _LARGEST,
        )
        for index, label in zip(
            indices[:EXAMPLES].tolist(), labels[:EXAMPLES].tolist(), strict=True
        )
    ]
    return ClassPair(
        data.classes[teacher],
        data.classes[student],
        len(indices),
        int((labels == teacher).sum()),
        int((labels == student).sum()),
        tuple(examples),
    )


def data_uri(image: Tensor) -> str:
    """An image as a PNG in a data URI, made smaller where it is large.

    Args:
        image: uint8 ``[C, H, W]`` with one or three channels; of others the first is shown.
    """
    channels = image if len(image) == 3 else image[:1]
    levels = channels.permute(1, 2, 0).squeeze(2).numpy()
    sample = Image.fromarray(levels)
    sample.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    sample.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
