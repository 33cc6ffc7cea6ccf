"""How large the images of a folder are, from a sample of them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from dskd.data.image_files import is_image

SAMPLE_PER_FOLDER, SAMPLE = 4, 64
"""Images that are opened in each folder, and in all."""


def typical_side(root: Path) -> int | None:
    """The median of the shorter sides of a few images, in pixels; none is decoded.

    Args:
        root: A folder with images at any depth.

    Returns:
        None if no image can be opened.
    """
    sides = list(islice(_sides(root), SAMPLE))
    return int(statistics.median(sides)) if sides else None


def _sides(root: Path) -> Iterator[int]:
    for folder, folders, names in os.walk(root, followlinks=False):
        folders.sort()
        for name in islice(filter(is_image, sorted(names)), SAMPLE_PER_FOLDER):
            try:
                with Image.open(Path(folder, name)) as image:
                    yield min(image.size)
            except (OSError, ValueError, Image.DecompressionBombError):  # it is reported when read
                continue
