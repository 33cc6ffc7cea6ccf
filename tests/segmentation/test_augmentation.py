"""Augmented images with masks: the mask goes with the image, and all comes from the seeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dskd.engine.tasks.segmentation.augmentation import MaskAugmentation
from dskd.engine.tasks.segmentation.settings import SegmentationDataSettings
from dskd.errors import InputError
from dskd.settings import validate

STANDARD = SegmentationDataSettings(name="shapes", augment="standard").augmentation


def squares(count: int, height: int = 48, width: int = 48) -> tuple[Tensor, Tensor]:
    """White squares on black, and their masks."""
    masks = torch.zeros(count, height, width, dtype=torch.int64)
    masks[:, 14:26, 20:32] = 1
    return (255 * masks[:, None]).to(torch.uint8), masks


@pytest.mark.parametrize("shape", [(48, 48), (40, 64)])
def test_a_mask_goes_with_its_image(shape: tuple[int, int]) -> None:
    images, masks = squares(50, *shape)
    found, (labels, copies) = STANDARD.apply(images, (masks, masks), torch.arange(50))
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    assert torch.equal(labels, copies)
    differing = ((found[:, 0] > 127) != (labels == 1)).float().mean((1, 2))
    assert differing.max() < 0.02, "only pixels at the border differ"
    sizes = labels.sum((1, 2)).float() / masks[0].sum()
    assert sizes.min() == pytest.approx(1.25**-2, rel=0.1)
    assert sizes.max() == pytest.approx(1.25**2, rel=0.1)
    assert len({tuple(label.flatten().tolist()) for label in labels}) == 50


def test_a_rotation_keeps_angles_and_lengths_in_images_that_are_not_square() -> None:
    masks = torch.zeros(20, 32, 64, dtype=torch.int64)
    masks[:, 15:17, 22:42] = 1  # a bar in the middle, 20 pixels long
    turned = MaskAugmentation(rotate=90)
    _, (labels,) = turned.apply(torch.zeros(20, 1, 32, 64).byte(), (masks,), torch.arange(20))
    for label in labels:
        ends = label.nonzero().float()
        length = (ends[:, None] - ends[None]).norm(dim=2).max().item()
        assert length == pytest.approx(19, abs=2)


def test_each_augmentation_does_its_own() -> None:
    images, masks = squares(8)
    seeds = torch.arange(8)

    def with_(**settings: Any) -> tuple[Tensor, Tensor]:
        found, (labels,) = MaskAugmentation(**settings).apply(images // 2, (masks,), seeds)
        return found[:, 0], labels

    _, flipped = with_(flip=True)
    kept = [torch.equal(one, mask) for one, mask in zip(flipped, masks, strict=True)]
    mirrored = [torch.equal(one, mask.flip(1)) for one, mask in zip(flipped, masks, strict=True)]
    assert all(a != b for a, b in zip(kept, mirrored, strict=True))
    assert any(kept)
    assert any(mirrored)
    _, shifted = with_(shift=0.1)
    corners = torch.tensor([label.nonzero().amin(0).tolist() for label in shifted])
    assert (corners - torch.tensor([14, 20])).abs().max() <= 5
    assert (shifted.sum((1, 2)) - 144).abs().max() <= 24
    bright, same = with_(gamma=2)
    assert torch.equal(same, masks)
    values = bright.flatten(1).amax(1).float()
    assert values.min() >= 255 * 0.5**2 - 2
    assert values.max() <= 255 * 0.5**0.5 + 2
    assert len(set(values.tolist())) > 4


def test_the_seeds_decide() -> None:
    images, masks = squares(6)
    seeds = torch.tensor([3, 4, 3, 5, 6, 7])
    first, _ = STANDARD.apply(images, (masks,), seeds)
    part, _ = STANDARD.apply(images[2:], (masks[2:],), seeds[2:])
    assert torch.equal(first[2:], part)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])


def test_settings_stand_alone_and_complete_a_set() -> None:
    own = SegmentationDataSettings(name="shapes", rotate=10)
    assert own.augmentation == MaskAugmentation(rotate=10)
    changed = SegmentationDataSettings(name="shapes", augment="standard", flip=False, zoom=1)
    assert changed.augmentation == MaskAugmentation(False, 30, 1, 0.1, 1.5)
    assert not SegmentationDataSettings(name="shapes").augmentation
    with pytest.raises(InputError, match="zoom"):
        validate(SegmentationDataSettings, {"name": "shapes", "zoom": 0.5}, "data.")
