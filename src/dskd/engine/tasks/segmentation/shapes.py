"""Generated images with masks: a bright disc in a ring, next to spots that look like it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dskd.engine.tasks.segmentation.dataset import MaskedImages

CLASSES: tuple[str, ...] = ("background", "disc", "ring")
SIZE = 64
PATIENTS = {"train": 8, "val": 2, "test": 3}
"""Patients of each split."""
SLICES = 6
"""Images of each patient."""


def generate(size: int = SIZE, seed: int = 0) -> dict[str, MaskedImages]:
    """Draws the images of the data set ``shapes``, which needs no files.

    A patient has a brightness, a place and a size of its own. Its slices are cuts through a ball:
    the disc and the ring around it are small in the first and the last slice. Other bright spots
    have no ring.

    Args:
        size: Height and width in pixels.
        seed: Of the drawing; it is not that of a run, so that all runs have the same images.

    Returns:
        The images of ``train``, ``val`` and ``test``.

    Example:
        >>> {split: len(images) for split, images in generate().items()}
        {'train': 48, 'val': 12, 'test': 18}
    """
    random = np.random.Generator(np.random.Philox(seed))
    splits, number = {}, 0
    for split, patients in PATIENTS.items():
        images, masks, names = [], [], []
        for _ in range(patients):
            for slice_number, (image, mask) in enumerate(_patient(size, random), start=1):
                images.append(image)
                masks.append(mask)
                names.append(f"patient{number:03}_{slice_number}")
            number += 1
        splits[split] = MaskedImages.without_seeds(
            torch.from_numpy(np.stack(images))[:, None],
            torch.from_numpy(np.stack(masks)),
            tuple(names),
            tuple(name.partition("_")[0] for name in names),
        )
    return splits


def _patient(
    size: int, random: np.random.Generator
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """The slices of a patient, each with its mask."""
    rows, columns = np.mgrid[:size, :size] / size
    dark, wall, bright = random.uniform(0.15, 0.3), random.uniform(0.4, 0.5), random.uniform(0.6, 1)
    y, x = random.uniform(0.35, 0.65, 2)
    radius, thickness = random.uniform(0.14, 0.2), random.uniform(0.05, 0.08)
    stretch = random.uniform(0.8, 1.25)
    found = []
    for height in np.linspace(-0.8, 0.8, SLICES):
        inner = radius * np.sqrt(1 - height**2)
        distance = np.hypot((rows - y) * stretch, (columns - x) / stretch)
        image = np.full((size, size), dark)
        for _ in range(4):
            spot_y, spot_x = random.uniform(0.05, 0.95, 2)
            spot = np.hypot(rows - spot_y, columns - spot_x)
            image[spot < random.uniform(0.04, 0.1)] = bright * random.uniform(0.7, 1)
        mask = np.zeros((size, size), np.uint8)
        mask[distance < inner + thickness] = 2
        mask[distance < inner] = 1
        image[mask == 2], image[mask == 1] = wall, bright
        noisy = image + random.normal(0, 0.08, image.shape)
        found.append(((noisy.clip(0, 1) * 255).astype(np.uint8), mask))
    return found
