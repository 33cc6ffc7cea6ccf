"""Seeds: a few foreground pixels of an image, in place of its whole mask."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dskd.errors import InputError

Place = Literal["random", "centre"]
"""Where a seed lies in the foreground."""


def draw_seeds(
    masks: NDArray[np.uint8],
    names: Sequence[str],
    *,
    seed: int,
    width: int = 4,
    place: Place = "random",
) -> NDArray[np.uint8]:
    """Draws a seed for each class of each image.

    A seed is a disc around a foreground pixel, and the part of it that lies in the mask counts.
    What is drawn depends on ``seed`` and on the name of the image alone, so it is the same in
    every epoch and does not change if other images come or go.

    Source: arXiv 2012.08051 has seeds of foreground pixels only. Their form is that of the data of
    its authors' earlier work, as we know it from its description: a disc around a random pixel. A
    disc in each class is *our choice*.

    Args:
        masks: ``[N, H, W]``, the class of each pixel; 0 is the background.
        names: N names of images, all different.
        seed: 0 or more.
        width: Width of the disc in pixels.
        place: ``random`` for a random pixel of the class, ``centre`` for the one that is nearest to
            the mean of all its pixels.

    Returns:
        ``[N, H, W]``: the class on the pixels of a seed, 0 elsewhere.

    Raises:
        InputError: Two images have one name.

    Example:
        >>> masks = np.zeros((1, 8, 8), np.uint8)
        >>> masks[0, :, 4:] = 2
        >>> seeds = draw_seeds(masks, ["a"], seed=0, width=1)
        >>> int((seeds == 2).sum()), int(seeds[0, :, :4].sum())
        (1, 0)
    """
    if len({*names}) < len(names):
        raise InputError("seeds are drawn by the names of images, and two images have one name")
    seeds = np.zeros_like(masks)
    for mask, name, out in zip(masks, names, seeds, strict=True):
        random = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
        )
        for label in np.unique(mask[mask > 0]):
            foreground = mask == label
            row, column = _pixel(foreground, place, random)
            out[_disc(mask.shape, row, column, width) & foreground] = label
    return seeds


def _pixel(
    foreground: NDArray[np.bool_], place: Place, random: np.random.Generator
) -> tuple[int, int]:
    """A pixel of the foreground."""
    pixels = np.argwhere(foreground)
    if place == "random":
        row, column = pixels[random.integers(len(pixels))]
    else:
        distances = ((pixels - pixels.mean(0)) ** 2).sum(1)
        row, column = pixels[distances.argmin()]
    return int(row), int(column)


def _disc(shape: tuple[int, ...], row: int, column: int, width: int) -> NDArray[np.bool_]:
    """The pixels of a disc; the middle of one of even width is the corner of four pixels."""
    shift = 0.0 if width % 2 else 0.5
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    distance: NDArray[np.float64] = (rows - row + shift) ** 2 + (columns - column + shift) ** 2
    inside: NDArray[np.bool_] = distance <= (width / 2) ** 2
    return inside
