"""Augmentations: what each does to an image, and that epoch and sample alone decide."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dskd.data import Split
from dskd.data.augmentation import Augmentation
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import MemoryLoader
from dskd.data.transforms import distort, draw_box, random_resized_crops, seeds_of_parts
from dskd.errors import InputError

EVERYTHING = Augmentation(
    crop_scale=(0.08, 1.0), auto_augment="trivialaugment", color_jitter=0.4, random_erasing=0.5
)
KINDS = [
    Augmentation(crop_scale=(0.08, 1.0)),
    Augmentation(auto_augment="randaugment"),
    Augmentation(auto_augment="trivialaugment"),
    Augmentation(color_jitter=0.4),
    Augmentation(random_erasing=1.0),
    EVERYTHING,
]
CPU = torch.device("cpu")


def make_split(count: int = 12, channels: int = 3) -> Split:
    images = torch.randint(0, 256, (count, channels, 16, 16), dtype=torch.uint8)
    return Split(images, torch.zeros(count, dtype=torch.int64))


def seeds(count: int = 12) -> torch.Tensor:
    return torch.arange(count) * 7919


def test_boxes_have_areas_and_ratios_in_range() -> None:
    wanted = Augmentation(crop_scale=(0.2, 0.5), crop_ratio=(0.5, 2.0))
    boxes = [draw_box(seed, 300, 400, wanted) for seed in range(200)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        assert 0.19 < height * width / 120_000 < 0.51
        assert 0.49 < width / height < 2.02
    areas = sorted(height * width / 120_000 for _, _, height, width in boxes)
    assert areas[0] < 0.22
    assert areas[-1] > 0.45
    assert len({box[:2] for box in boxes}) > 150


def test_a_crop_that_cannot_fit_is_the_largest_centred_one() -> None:
    whole = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert draw_box(0, 100, 60, whole) == (20, 0, 60, 60)
    assert draw_box(0, 60, 60, whole) == (0, 0, 60, 60)


def test_a_whole_crop_of_the_same_shape_changes_nothing() -> None:
    images = make_split().images
    whole = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert torch.equal(random_resized_crops(images, seeds(), whole), images)


def test_a_crop_is_a_part_of_the_image_in_its_size() -> None:
    columns = (torch.arange(16, dtype=torch.uint8) * 16).expand(1, 1, 16, 16)
    quarter = Augmentation(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0), interpolation="bilinear")
    found = random_resized_crops(columns, seeds(1), quarter)
    (crop, _) = seeds_of_parts(seeds(1))[0]
    _, left, height, width = draw_box(crop, 16, 16, quarter)
    assert (height, width) == (8, 8)
    assert found.shape == columns.shape
    assert (int(found.min()), int(found.max())) == (16 * left, 16 * (left + 7))


def test_erasing_turns_a_rectangle_into_noise() -> None:
    images = torch.zeros(40, 3, 20, 20, dtype=torch.uint8)
    erased = distort(images, seeds(40), Augmentation(random_erasing=0.5)).sum(1) > 0
    shares = erased.flatten(1).float().mean(1)
    assert 10 <= int((shares > 0).sum()) <= 30
    assert float(shares.max()) <= 0.4
    for image in erased[shares > 0]:
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert float(box.float().mean()) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_epoch_and_sample_decide_and_not_the_order(kind: Augmentation) -> None:
    split = make_split()
    loader = MemoryLoader(split, CPU)
    plan = draw_plan(0, 0, len(split), 0, flip=True, augmentation=kind)

    def images(plan: object, size: int, start: int = 0) -> dict[int, torch.Tensor]:
        batches = loader.batches(plan, size, start)  # type: ignore[arg-type]
        return {int(i): x for b in batches for i, x in zip(b.indices, b.images, strict=True)}

    whole = images(plan, 12)
    assert all(torch.equal(whole[i], image) for i, image in images(plan, 4).items())
    assert all(torch.equal(whole[i], image) for i, image in images(plan, 4, start=1).items())
    other_order = replace(plan, order=plan.order.flip(0))
    assert all(torch.equal(whole[i], image) for i, image in images(other_order, 5).items())
    next_epoch = images(draw_plan(0, 1, len(split), 0, flip=True, augmentation=kind), 12)
    assert any(not torch.equal(whole[i], image) for i, image in next_epoch.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_changed_and_keep_their_form(kind: Augmentation, channels: int) -> None:
    split = make_split(channels=channels)
    plain = draw_plan(0, 0, len(split))
    (before,) = MemoryLoader(split, CPU).batches(plain, 12)
    (after,) = MemoryLoader(split, CPU).batches(replace(plain, augmentation=kind), 12)
    assert after.images.shape == before.images.shape
    assert after.images.dtype == torch.uint8
    changed = (after.images != before.images).flatten(1).any(1)
    assert int(changed.sum()) >= 6


def test_the_global_random_state_stays() -> None:
    images, before = make_split().images, torch.get_rng_state()
    distort(images, seeds(), EVERYTHING)
    assert torch.equal(torch.get_rng_state(), before)


def test_colours_of_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="need gray or RGB images, and these have 4 channels"):
        distort(make_split(channels=4).images, seeds(), Augmentation(color_jitter=0.1))
    assert distort(make_split(channels=4).images, seeds(), Augmentation(random_erasing=1.0)).any()
