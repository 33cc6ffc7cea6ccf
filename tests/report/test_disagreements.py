"""Test images that student and teacher classify differently."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dskd.data import Dataset, Split
from dskd.models.staged_model import StagedModel
from dskd.report.disagreements import data_uri, find_disagreements, from_class_folder
from dskd.report.mistakes import find_mistakes


class Predicts(nn.Module):
    """Predicts a class from the grey level of an image, by a list of classes."""

    def __init__(self, classes: list[int]) -> None:
        super().__init__()
        self.classes = torch.tensor(classes)

    def forward(self, images: Tensor) -> Tensor:
        levels = (255 * images[:, 0, 0, 0]).round().long()
        return nn.functional.one_hot(self.classes[levels], 3).float()


def predicts(*classes: int) -> StagedModel:
    return StagedModel(Predicts(list(classes)), mean=(0.0,), std=(1.0,)).eval()


def levelled(labels: list[int]) -> Dataset:
    """Images of one grey level each, which is their index."""
    levels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    split = Split(levels.expand(-1, 1, 4, 4).contiguous(), torch.tensor(labels))
    return Dataset("levels", split, split, ("cat", "dog", "<script>"), (0.5,), (0.5,))


def test_nobody_is_right_without_labels() -> None:
    data = dataclasses.replace(levelled([0, 0, 1]), without_labels=True)
    found = find_disagreements("kd", 0, predicts(0, 0, 1), predicts(1, 1, 1), data)
    assert (found.count, found.teacher_right, found.student_right) == (2, None, None)
    (pair,) = found.pairs
    assert (pair.teacher_right, pair.student_right) == (None, None)
    assert [example.label for example in pair.examples] == ["", ""]


def test_disagreements_are_counted_by_pair_of_classes() -> None:
    data = levelled([0, 0, 0, 1, 2, 1])
    teacher, student = predicts(0, 0, 1, 1, 0, 1), predicts(1, 1, 0, 1, 1, 2)
    found = find_disagreements("kd", 7, student, teacher, data)
    assert (found.label, found.seed, found.test_images, found.count) == ("kd", 7, 6, 5)
    assert (found.teacher_right, found.student_right, found.num_pairs) == (3, 1, 3)
    first, *others = found.pairs
    assert (first.teacher, first.student, first.count) == ("cat", "dog", 3)
    assert (first.teacher_right, first.student_right) == (2, 0)
    assert [(example.index, example.label) for example in first.examples] == [
        (0, "cat"),
        (1, "cat"),
        (4, "<script>"),
    ]
    assert [(pair.teacher, pair.student) for pair in others] == [
        ("dog", "cat"),
        ("dog", "<script>"),
    ]


def test_models_that_agree_have_no_disagreements() -> None:
    found = find_disagreements("kd", 0, predicts(0, 1), predicts(0, 1), levelled([0, 2]))
    assert (found.count, found.pairs, found.num_pairs) == (0, (), 0)


@pytest.mark.parametrize("names_are_files", [True, False])
def test_only_paths_of_files_are_shown(names_are_files: bool) -> None:
    data = levelled([0, 1])
    assert isinstance(data.test, Split)
    named = dataclasses.replace(data.test, names=("test/cat/0.png", "test/dog/0.png"))
    data = dataclasses.replace(data, test=named, names_are_files=names_are_files)
    found = find_disagreements("kd", 0, predicts(1, 1), predicts(0, 1), data)
    (example,) = found.pairs[0].examples
    assert example.file == ("test/cat/0.png" if names_are_files else "")
    wrong = find_mistakes("kd", 0, predicts(1, 1), data)
    assert wrong.worst[0].file == example.file


@pytest.mark.parametrize(
    ("file", "label", "shown"),
    [
        ("train/cat/a/0.png", "cat", "cat/a/0.png"),
        ("cat/0.png", "cat", "cat/0.png"),
        ("scans/7/0.png", "cat", "scans/7/0.png"),
        ("images/cat", "cat", "images/cat"),
        ("0.png", "cat", "0.png"),
    ],
)
def test_a_file_is_shown_from_its_class_folder_on(file: str, label: str, shown: str) -> None:
    assert from_class_folder(file, label) == shown


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    [((1, 8, 6), "L", (6, 8)), ((3, 8, 8), "RGB", (8, 8)), ((3, 200, 100), "RGB", (48, 96))],
)
def test_images_are_embedded_in_the_page(
    shape: tuple[int, int, int], mode: str, size: tuple[int, int]
) -> None:
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    head, _, content = data_uri(image).partition(",")
    assert head == "data:image/png;base64"
    opened = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (opened.mode, opened.size) == (mode, size)
    if max(shape) < 96:
        levels = np.asarray(opened)
        np.testing.assert_array_equal(levels, image.permute(1, 2, 0).squeeze(2).numpy())
