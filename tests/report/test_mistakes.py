"""The errors of a student on the test split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dskd.data import Dataset, Split
from dskd.data.dataset import Samples
from dskd.models.staged_model import StagedModel
from dskd.report.confusion_chart import class_accuracies, confusion_map
from dskd.report.mistakes import (
    CONFUSED_PAIRS,
    MATRIX_CLASSES,
    MOST_CONFUSED,
    OTHERS,
    WORST,
    find_mistakes,
)


class Says(nn.Module):
    """Predicts a class from the grey level of an image, with a logit of its own."""

    def __init__(self, predicted: list[int], logits: list[float], classes: int) -> None:
        super().__init__()
        self.predicted, self.logits = torch.tensor(predicted), torch.tensor(logits)
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        levels = (255 * images[:, 0, 0, 0]).round().long()
        one_hot = nn.functional.one_hot(self.predicted[levels], self.classes)
        return one_hot * self.logits[levels, None]


def says(predicted: list[int], logits: list[float], classes: int) -> StagedModel:
    return StagedModel(Says(predicted, logits, classes), mean=(0.0,), std=(1.0,)).eval()


def levelled(labels: list[int], classes: int, split: Samples | None = None) -> Dataset:
    """Images of one grey level each, which is their index."""
    levels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    images = levels.expand(-1, 1, 4, 4).contiguous()
    test = split or Split(images, torch.tensor(labels))
    return Dataset("levels", test, test, tuple(f"c{n}" for n in range(classes)), (0.5,), (0.5,))


def test_errors_are_counted_by_class_and_sorted_by_probability() -> None:
    labels, predicted = [0, 0, 0, 1, 2, 1], [0, 1, 1, 1, 0, 2]
    found = find_mistakes(
        "kd", 7, says(predicted, [9.0, 1.0, 3.0, 9.0, 2.0, 0.5], 3), levelled(labels, 3)
    )
    assert (found.label, found.seed, found.test_images, found.count) == ("kd", 7, 6, 4)
    assert found.matrix == ((1, 2, 0), (0, 1, 1), (1, 0, 0))
    assert found.confused[0][:3] == ("c0", "c1", 2)
    assert found.confused[0][3] == pytest.approx(200 / 3)
    assert [error.index for error in found.worst] == [2, 4, 1, 5]
    first = found.worst[0]
    assert (first.label, first.predicted, first.small) == ("c0", "c1", True)
    likelihood = torch.tensor([0.0, 3.0, 0.0]).softmax(0)[1].item()
    assert first.probability == pytest.approx(100 * likelihood)


def test_a_student_without_errors_has_no_worst_ones() -> None:
    found = find_mistakes("kd", 0, says([0, 1], [1.0, 1.0], 2), levelled([0, 1], 2))
    assert (found.count, found.confused, found.worst) == (0, (), ())


@pytest.mark.parametrize("classes", [MATRIX_CLASSES, 100, 1000])
def test_of_many_classes_the_matrix_has_the_most_confused(classes: int) -> None:
    labels = [*range(30), 0, 5, 5]
    predicted = [*((label + 1) % classes for label in range(30)), 39, 5, 6]
    student = says(predicted, [1.0] * len(labels), classes)
    found = find_mistakes("kd", 0, student, levelled(labels, classes))
    assert (len(found.confused), len(found.worst)) == (CONFUSED_PAIRS, WORST)
    *first, share = found.confused[0]
    assert first == ["c5", "c6", 2]
    assert share == pytest.approx(200 / 3)
    best, accuracy = found.class_accuracy[-1]
    assert best == "c5"
    assert accuracy == pytest.approx(100 / 3)
    assert len(found.class_accuracy) == 30  # those with test images
    if classes == MATRIX_CLASSES:
        assert found.rows == found.columns == tuple(f"c{n}" for n in range(classes))
    else:
        assert found.rows[:3] == ("c5", "c6", "c0")  # the most frequent error comes first
        assert found.columns == (*found.rows, OTHERS)
        assert len(found.rows) == MOST_CONFUSED
        assert found.matrix[0][:2] == (1, 2)
        assert found.matrix[2] == (*[0] * 3, 1, *[0] * (MOST_CONFUSED - 4), 1)  # c0: c1 and c39
    sizes = dict(zip(found.rows, map(sum, found.matrix), strict=True))
    assert (sizes["c0"], sizes["c5"], sizes["c6"]) == (2, 3, 1)
    figure = confusion_map(found.rows, found.columns, found.matrix)
    assert len(figure.to_json()) < 150_000
    assert len(class_accuracies(found.class_accuracy).to_json()) < 5_000


def test_a_matrix_has_numbers_if_they_fit_and_short_names() -> None:
    names = ["<b>", "a name that is much too long"]
    few = confusion_map(names, names, [[3, 1], [0, 0]])
    assert [note.text for note in few.layout.annotations] == ["3", "1"]
    assert list(few.layout.xaxis.ticktext) == ["&lt;b&gt;", "a name that is mu…"]
    assert list(few.data[0].z[0]) == [75.0, 25.0]
    assert few.data[0].text[0][1] == "&lt;b&gt;, predicted a name that is much too long: 1"
    names = [str(n) for n in range(40)]
    many = confusion_map(names, names, [[1] * 40] * 40)
    assert not many.layout.annotations
    assert len(many.layout.yaxis.ticktext) == 40
