"""Crops, flips and rotations, compared with plain slices."""

from __future__ import annotations

import pytest
import torch

from dskd.data.transforms import crop_and_flip, rotations
from dskd.errors import InputError


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_a_crop_is_a_slice_of_the_padded_image_and_a_flip_its_mirror_image(padding: int) -> None:
    count, height, width = 12, 4, 5
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    dy, dx = torch.randint(0, 2 * padding + 1, (2, count))
    flip = torch.arange(count) % 2 == 0
    found = crop_and_flip(images, dy, dx, flip, padding)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    for index in range(count):
        padded = torch.zeros(3, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + height, padding : padding + width] = images[index]
        top, left = int(dy[index]), int(dx[index])
        crop = padded[:, top : top + height, left : left + width]
        assert torch.equal(found[index], crop.flip(2) if flip[index] else crop), index


def test_rotations_are_quarter_turns_of_all_images_in_turn() -> None:
    images = torch.arange(2 * 1 * 3 * 3).view(2, 1, 3, 3)
    found = rotations(images)
    assert found.shape == (8, 1, 3, 3)
    for turns in range(4):
        for index in range(2):
            expected = torch.rot90(images[index, 0], turns)
            assert torch.equal(found[2 * turns + index, 0], expected)


@pytest.mark.parametrize(("height", "width"), [(4, 5), (5, 4)])
def test_images_that_are_not_square_are_not_rotated(height: int, width: int) -> None:
    with pytest.raises(InputError, match=rf"only square images .*\[3, {height}, {width}\]"):
        rotations(torch.zeros(2, 3, height, width))
