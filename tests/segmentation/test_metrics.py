"""Dice and HD95 against counts and distances by hand."""

from __future__ import annotations

import math

import pytest
import torch

from dskd.engine.tasks.segmentation import metrics
from dskd.engine.tasks.segmentation.metrics import class_scores, dice_scores, hd95


def test_dice_of_each_image_and_class() -> None:
    torch.manual_seed(0)
    predictions, masks = torch.randint(0, 3, (2, 5, 8, 8))
    found = dice_scores(predictions, masks, 3)
    for image in range(5):
        for label in (1, 2):
            p, y = predictions[image] == label, masks[image] == label
            expected = 2 * float((p & y).sum()) / float(p.sum() + y.sum())
            assert found[image, label - 1].item() == pytest.approx(expected)


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte for each pixel and class, and few pixels at a time, with the same scores."""
    torch.manual_seed(0)
    predictions, masks = torch.randint(0, 3, (2, 7, 12, 12), dtype=torch.uint8)
    whole = [dice_scores(predictions, masks, 3), hd95(predictions, masks, 3)]
    sizes: list[int] = []

    def recorded(masks: torch.Tensor, classes: int) -> torch.Tensor:
        found = one_hot(masks, classes)
        sizes.append(found.nbytes)
        return found

    one_hot = metrics._one_hot
    monkeypatch.setattr(metrics, "CHUNK", 3 * 12 * 12 * 2)
    monkeypatch.setattr(metrics, "_one_hot", recorded)
    parts = [dice_scores(predictions, masks, 3), hd95(predictions, masks, 3)]
    assert max(sizes) == 3 * 12 * 12 * 2
    assert all(torch.equal(*pair) for pair in zip(whole, parts, strict=True))
    expected = torch.nn.functional.one_hot(masks.long(), 3).permute(0, 3, 1, 2)
    assert torch.equal(one_hot(masks, 3), expected)


def test_a_missing_class_counts() -> None:
    """Nothing to find: right if nothing is found, and wrong after one false pixel."""
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    predictions = masks.clone()
    predictions[1, 0, 0] = 1
    assert dice_scores(predictions, masks, 2).flatten().tolist() == [1.0, 0.0]


def test_hd95_is_the_distance_of_borders() -> None:
    """A square of 8 pixels, moved by 3: no border pixel is further from the other border."""
    masks = torch.zeros(1, 24, 24, dtype=torch.uint8)
    masks[0, 8:16, 8:16] = 1
    assert hd95(masks, masks, 2).item() == 0
    assert hd95(masks.roll(3, 2), masks, 2).item() == 3


def test_hd95_takes_the_worse_direction() -> None:
    """A second object that was not asked for is far from all that is there, but not vice versa."""
    masks = torch.zeros(1, 8, 32, dtype=torch.uint8)
    masks[0, 2:5, 2:5] = 1
    more = masks.clone()
    more[0, 2:5, 25:28] = 1
    assert hd95(more, masks, 2).item() > 20
    assert hd95(more, masks, 2).item() == hd95(masks, more, 2).item()


def test_without_a_border_hd95_is_not_defined() -> None:
    masks = torch.zeros(3, 8, 8, dtype=torch.uint8)
    masks[1:, 2, 2] = 1
    predictions = torch.zeros_like(masks)
    predictions[2, 2, 2] = 1
    found = hd95(predictions, masks, 2).flatten().tolist()
    assert [math.isnan(value) for value in found] == [True, True, False]
    (score,) = class_scores(predictions, masks, ("background", "dot"))
    assert (score.name, score.hd95, score.hd95_images) == ("dot", 0.0, 1)
    assert score.dice == pytest.approx(200 / 3)


def test_hd95_of_a_class_that_is_nowhere_is_none() -> None:
    nothing = torch.zeros(2, 8, 8, dtype=torch.uint8)
    (score,) = class_scores(nothing, nothing, ("background", "dot"))
    assert (score.dice, score.hd95, score.hd95_images) == (100.0, None, 0)
