"""Masks over images: the background stays, classes get colours of their own."""

from __future__ import annotations

import numpy as np
import pytest

from dskd.engine.tasks.segmentation.overlay import OPACITY, colour, draw_overlay


@pytest.mark.parametrize("channels", [1, 3])
def test_the_background_stays_and_the_border_has_the_colour(channels: int) -> None:
    image = np.full((channels, 16, 16), 100, np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 2
    drawn = np.asarray(draw_overlay(image, mask))
    assert (drawn[mask == 0] == 100).all()
    assert tuple(drawn[4, 4]) == colour(2)
    inner = (1 - OPACITY) * 100 + OPACITY * np.array(colour(2))
    np.testing.assert_array_equal(drawn[8, 8], inner.round())


def test_classes_have_colours_that_differ() -> None:
    colours = [np.array(colour(label)) for label in range(1, 9)]
    apart = [abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(apart) > 60
