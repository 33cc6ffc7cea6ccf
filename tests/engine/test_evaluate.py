"""Accuracy of classifiers, compared with logits made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dskd.data import Split
from dskd.data.loader import MemoryLoader
from dskd.engine.evaluate import EvaluationResult, evaluate_accuracy, own_batches, percent
from dskd.errors import InputError

CPU = torch.device("cpu")
LOGITS = [
    [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0],  # label 0: the first guess
    [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0],  # label 1: the second
    [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0],  # label 4: the fifth
    [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0],  # label 5: the sixth
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],  # label 6: the first
    [-7.0, -1.0, -3.0, -4.0, -5.0, -6.0, -2.0],  # label 6: the second
    [-7.0, -1.0, -3.0, -4.0, -5.0, -6.0, -2.0],  # label 0: the last
    [0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0],  # label 2: the first
]
LABELS = [0, 1, 4, 5, 6, 6, 0, 2]
PREDICTED = [0, 0, 0, 0, 6, 1, 1, 2]


def test_an_image_that_cannot_be_read_is_told_by_its_process() -> None:
    class Damaged(MemoryLoader):
        def in_order(self, *others: Any) -> Iterator[Any]:
            yield from super().in_order(*others)
            raise InputError("cannot read a.png")

    loader = Damaged(Split(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1])), CPU)
    with pytest.raises(InputError) as raised:
        list(own_batches(loader))
    assert raised.value.of_one_process


class Table(nn.Module):
    """Looks up the logits of an image, whose first pixel is its row."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(logits))
        self.dropout = nn.Dropout().eval()
        self.batches: list[int] = []
        self.modes: set[tuple[bool, bool]] = set()
        self.graphs: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        self.modes.add((self.training, self.dropout.training))
        logits = self.rows[images[:, 0, 0, 0].long()]
        self.graphs.add(logits.requires_grad)
        return logits


def loader(labels: list[int], size: int = 2) -> MemoryLoader:
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    split = Split(images.expand(-1, 1, size, size).contiguous(), torch.tensor(labels))
    return MemoryLoader(split, CPU)


def evaluated(module: nn.Module, split: MemoryLoader) -> EvaluationResult:
    return evaluate_accuracy(module, lambda images: {"it": module(images)}, split)["it"]


def test_the_first_guess_counts_and_the_five_best_for_top5() -> None:
    found = evaluated(Table(LOGITS), loader(LABELS))
    assert found.predictions.tolist() == PREDICTED
    assert found.accuracy == 37.5  # 3 of 8
    assert found.accuracy_top5 == 75.0  # 6 of 8
    assert found.finite


@pytest.mark.parametrize("classes", [2, 5])
def test_with_five_classes_or_fewer_there_is_no_top5(classes: int) -> None:
    logits = [[float(label) for label in range(classes)]] * 4
    found = evaluated(Table(logits), loader([0, 1, classes - 1, 0]))
    assert found.accuracy_top5 is None
    assert found.predictions.tolist() == [classes - 1] * 4


def test_with_six_classes_the_least_likely_is_not_in_top5() -> None:
    logits = [[float(label) for label in range(6)]] * 4
    assert evaluated(Table(logits), loader([0, 1, 5, 0])).accuracy_top5 == 50


def test_each_classifier_has_its_own_result() -> None:
    good, bad = Table(LOGITS), Table([[1.0, 0.0]] * 8)
    both = nn.ModuleList([good, bad])
    found = evaluate_accuracy(
        both, lambda images: {"good": good(images), "bad": bad(images)}, loader(LABELS)
    )
    assert {name: one.accuracy for name, one in found.items()} == {"good": 37.5, "bad": 25.0}
    assert found["good"].agreement(found["bad"]) == 50.0  # both say 0 for the first four
    assert found["good"].agreement(found["good"]) == 100.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 7])
def test_one_logit_that_is_not_finite_is_told(value: float, row: int) -> None:
    logits = [list(one) for one in LOGITS]
    logits[row][3] = value
    assert not evaluated(Table(logits), loader(LABELS)).finite


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_evaluation_and_comes_back(training: bool) -> None:
    table = Table(LOGITS).train(training)
    table.dropout.eval()  # a part that the user froze
    evaluated(table, loader(LABELS))
    assert table.modes == {(False, False)}
    assert table.training is training
    assert not table.dropout.training


def test_no_gradients_are_recorded() -> None:
    table = Table(LOGITS)
    with torch.enable_grad():
        evaluated(table, loader(LABELS))
    assert table.graphs == {False}


def test_larger_images_come_in_smaller_batches_and_none_is_lost() -> None:
    labels = [0, 1] * 60
    for size, batches in ((2, [120]), (64, [25, 25, 25, 25, 20]), (400, [1] * 120)):
        table = Table([[1.0, 0.0]] * 120)
        found = evaluated(table, loader(labels, size))
        assert table.batches == batches
        assert found.accuracy == 50
        assert len(found.predictions) == 120


def test_a_percentage_is_rounded_to_four_digits() -> None:
    assert percent(torch.tensor([True, False, False])) == 33.3333
    assert percent(torch.tensor([True, True, False])) == 66.6667
