"""Seeds: discs of a width, in the mask, the same for the same image."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dskd.engine.tasks.segmentation.seeds import draw_seeds
from dskd.errors import InputError


def everywhere(size: int = 32) -> NDArray[np.uint8]:
    return np.ones((1, size, size), np.uint8)


@pytest.mark.parametrize(("width", "pixels"), [(1, 1), (2, 4), (3, 9), (4, 12), (5, 21)])
def test_a_disc_has_its_width(width: int, pixels: int) -> None:
    """Width 4: the square of 16 pixels without its corners."""
    seeds = draw_seeds(everywhere(), ["a"], seed=0, width=width, place="centre")[0]
    rows, columns = np.nonzero(seeds)
    assert np.ptp(rows) == np.ptp(columns) == width - 1
    assert len(rows) == pixels


def test_the_mask_cuts_the_disc() -> None:
    masks = np.zeros((1, 16, 16), np.uint8)
    masks[0, 7, 3:12] = 1  # a line
    seeds = draw_seeds(masks, ["a"], seed=3, width=4)
    assert 1 <= seeds.sum() <= 4
    assert not seeds[masks == 0].any()


def test_the_central_pixel_lies_in_the_mask() -> None:
    """The middle of a ring is no part of it."""
    rows, columns = np.mgrid[:33, :33] - 16
    distance = np.hypot(rows, columns)
    masks = ((distance > 8) & (distance < 12)).astype(np.uint8)[None]
    seeds = draw_seeds(masks, ["a"], seed=0, width=1, place="centre")
    assert seeds.sum() == 1
    assert masks[seeds > 0].all()


def test_each_class_has_a_seed_and_an_empty_image_has_none() -> None:
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[0, :4], masks[0, 12:] = 1, 3
    seeds = draw_seeds(masks, ["a", "b"], seed=0)
    assert set(np.unique(seeds[0])) == {0, 1, 3}
    assert not seeds[1].any()
    assert (masks[seeds > 0] == seeds[seeds > 0]).all()


def test_a_seed_depends_on_the_name_and_the_seed_alone() -> None:
    masks = np.repeat(everywhere(), 3, 0)
    seeds = draw_seeds(masks, ["a", "b", "c"], seed=0)
    np.testing.assert_array_equal(draw_seeds(masks[:2], ["c", "a"], seed=0), seeds[[2, 0]])
    assert (seeds[0] != seeds[1]).any()
    assert (draw_seeds(masks, ["a", "b", "c"], seed=1) != seeds).any()


def test_random_seeds_are_everywhere() -> None:
    names = [str(number) for number in range(200)]
    seeds = draw_seeds(np.repeat(everywhere(8), 200, 0), names, seed=0, width=1)
    assert (seeds.sum(0) > 0).mean() > 0.9


def test_two_images_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="two images have one name"):
        draw_seeds(np.repeat(everywhere(), 2, 0), ["a", "a"], seed=0)
