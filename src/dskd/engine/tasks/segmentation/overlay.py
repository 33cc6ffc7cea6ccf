"""Predicted masks drawn over images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OPACITY = 0.4
"""Share of a class's colour in the pixels inside of its mask; its border has the colour alone."""


def colour(label: int) -> tuple[int, int, int]:
    """The colour of a class: those of neighbouring classes differ as much as they can.

    Example:
        >>> colour(1)
        (255, 64, 64)
    """
    hue = (label - 1) * 0.381966 % 1  # the golden angle
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_overlay(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Image.Image:
    """The image with the classes of a mask in colours.

    Args:
        image: ``[C, H, W]``, with one channel or three.
        mask: ``[H, W]``, the class of each pixel; the background 0 is not drawn.

    Example:
        >>> draw_overlay(np.zeros((1, 4, 4), np.uint8), np.zeros((4, 4), np.uint8)).size
        (4, 4)
    """
    base = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    canvas = base.astype(np.float64)
    for label in np.unique(mask[mask > 0]):
        inside = mask == label
        paint = np.array(colour(int(label)))
        canvas[inside] = (1 - OPACITY) * canvas[inside] + OPACITY * paint
        canvas[_border(inside)] = paint
    return Image.fromarray(canvas.round().astype(np.uint8))


def draw_rows(
    images: Sequence[NDArray[np.uint8]], columns: Sequence[Sequence[NDArray[np.uint8]]]
) -> Image.Image:
    """Images one below the other, and in each row the same image under several masks.

    Args:
        images: ``[C, H, W]`` each, of one size.
        columns: The masks of all images, for each column.

    Example:
        >>> image, mask = np.zeros((1, 4, 6), np.uint8), np.zeros((4, 6), np.uint8)
        >>> draw_rows([image, image], [[mask, mask]] * 3).size
        (18, 8)
    """
    rows = [
        np.hstack([np.asarray(draw_overlay(image, mask)) for mask in masks])
        for image, *masks in zip(images, *columns, strict=True)
    ]
    return Image.fromarray(np.vstack(rows))


def _border(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask with a neighbour that is not in it."""
    padded = np.pad(inside, 1)
    around = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    border: NDArray[np.bool_] = inside & ~around
    return border
