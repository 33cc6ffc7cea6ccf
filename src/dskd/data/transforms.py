"""Image transforms of whole batches, on the device that holds them.

torchvision is imported when it is first used, because it takes a second.
"""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.data.augmentation import Augmentation
from dskd.data.epoch_plan import draw_below
from dskd.errors import InputError

Box = tuple[int, int, int, int]
"""Top, left, height and width of a crop."""

_OWN = 0x2545F4914F6CDD1D
"""Tells the random numbers of augmentations from those that methods draw from the same seeds."""
_TRIES = 10
"""Attempts to draw a rectangle that fits into the image. torchvision and timm make as many."""
_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Range of the erased part of the image and of its width to its height, from the paper."""


def crop_and_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad each image with zeros, crop it to its own size, and mirror it where ``flip`` is true.

    Args:
        images: ``[B, C, H, W]``, any type.
        dy: int64 ``[B]``, first row of the crop, from 0 to 2 * padding.
        dx: int64 ``[B]``, first column of the crop, from 0 to 2 * padding.
        flip: bool ``[B]``, whether to mirror left to right.
        padding: Width of the border of zeros, in pixels.

    Returns:
        ``[B, C, H, W]`` in the channels-last memory format.

    Example:
        >>> image = torch.arange(4).view(1, 1, 2, 2)
        >>> zero = torch.zeros(1, dtype=torch.long)
        >>> crop_and_flip(image, zero, zero, torch.tensor([True]), 0).flatten()
        tensor([1, 0, 3, 2])
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4) if padding else images
    rows = dy[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    columns = dx[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    pixels = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return pixels.permute(0, 3, 1, 2)


def rotations(images: Tensor) -> Tensor:
    """Each image rotated by 0, 90, 180 and 270 degrees.

    Args:
        images: ``[B, C, H, H]``, square.

    Returns:
        ``[4 B, C, H, H]``: all images unrotated, then all images rotated by 90 degrees, and so on.

    Raises:
        InputError: The images are not square.

    Example:
        >>> rotations(torch.arange(4).view(1, 1, 2, 2))[1].tolist()
        [[[1, 3], [0, 2]]]
    """
    if images.shape[2] != images.shape[3]:
        raise InputError(
            f"only square images can be rotated, got {list(images.shape[1:])}; set data.size"
        )
    return torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])


def seeds_of_parts(seeds: Tensor) -> list[list[int]]:
    """For each sample, a seed below 2^32 of its random resized crop and one of all that follows.

    Args:
        seeds: int64 ``[B]``, `EpochPlan.seeds` of the samples.
    """
    parts: list[list[int]] = draw_below(seeds ^ _OWN, 2, 2**32).tolist()
    return parts


def draw_box(seed: int, height: int, width: int, augmentation: Augmentation) -> Box:
    """Draw the random resized crop of an image.

    Area and logarithm of the ratio are uniform. If no attempt fits, the crop is the largest centred
    one with an allowed ratio, as in torchvision.

    Args:
        seed: Of this crop (`seeds_of_parts`).
        height: Of the image.
        width: Of the image.
        augmentation: Its `crop_scale` and `crop_ratio` are used.

    Example:
        >>> draw_box(0, 100, 200, Augmentation(crop_scale=(0.25, 0.25), crop_ratio=(2, 2)))[2:]
        (50, 100)
    """
    assert augmentation.crop_scale is not None
    draw = random.Random(seed)
    if box := _draw_rectangle(
        draw, height, width, augmentation.crop_scale, augmentation.crop_ratio
    ):
        return box
    low, high = augmentation.crop_ratio
    ratio = min(max(width / height, low), high)
    rows = min(height, max(1, round(width / ratio)))
    columns = min(width, max(1, round(height * ratio)))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _draw_rectangle(
    draw: random.Random,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box | None:
    """A rectangle within an image; None if none of a few was small enough."""
    for _ in range(_TRIES):
        area = height * width * draw.uniform(*scale)
        shape = math.exp(draw.uniform(math.log(ratio[0]), math.log(ratio[1])))
        rows, columns = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            return draw.randint(0, height - rows), draw.randint(0, width - columns), rows, columns
    return None


def random_resized_crops(images: Tensor, seeds: Tensor, augmentation: Augmentation) -> Tensor:
    """Crop a random part of each image and resize it to the size of the images.

    Args:
        images: uint8 ``[B, C, H, W]``.
        seeds: int64 ``[B]``, `EpochPlan.seeds` of the samples.
        augmentation: See `draw_box`.

    Returns:
        uint8 ``[B, C, H, W]``; the images themselves if there is no such crop.
    """
    if augmentation.crop_scale is None or len(images) == 0:
        return images
    size = height, width = images.shape[2], images.shape[3]
    boxes = [draw_box(crop, height, width, augmentation) for crop, _ in seeds_of_parts(seeds)]
    parts = [
        resize(image, box, size, augmentation) for image, box in zip(images, boxes, strict=True)
    ]
    return torch.stack(parts)


def resize(image: Tensor, box: Box, size: tuple[int, ...], augmentation: Augmentation) -> Tensor:
    """Crop an image ``[C, H, W]`` to ``box`` and resize it to ``size``, antialiased."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    mode = InterpolationMode(augmentation.interpolation)
    resized: Tensor = functional.resized_crop(image, *box, list(size), mode, antialias=True)
    return resized


def distort(images: Tensor, seeds: Tensor, augmentation: Augmentation) -> Tensor:
    """Apply auto-augmentation, colour jitter and random erasing to each image.

    torchvision draws from torch's global generator. It gets the seed of each sample, and afterwards
    the state that it had.

    Args:
        images: uint8 ``[B, C, H, W]``.
        seeds: int64 ``[B]``, `EpochPlan.seeds` of the samples.
        augmentation: What is done.

    Returns:
        uint8 ``[B, C, H, W]``; the images themselves if nothing is done.

    Raises:
        InputError: The images are neither gray nor RGB.
    """
    operations = _operations(augmentation)
    if not operations and not augmentation.random_erasing:
        return images
    if operations and images.shape[1] not in (1, 3):
        raise InputError(
            "data.auto_augment and data.color_jitter need gray or RGB images, and these have "
            f"{images.shape[1]} channels; drop them"
        )
    distorted = torch.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        for row, (_, seed) in enumerate(seeds_of_parts(seeds)):
            torch.default_generator.manual_seed(seed)
            changed = _apply(operations, images[row]) if operations else images[row]
            distorted[row] = _erase(changed, seed, augmentation.random_erasing)
    return distorted


def _apply(operations: tuple[Any, ...], image: Tensor) -> Tensor:
    """Apply torchvision's operations to an image: by Pillow on a CPU, where it is faster."""
    from torchvision.transforms.v2 import functional

    part: Any = functional.to_pil_image(image) if image.device.type == "cpu" else image
    for operation in operations:
        part = operation(part)
    changed: Tensor = functional.pil_to_tensor(part) if image.device.type == "cpu" else part
    return changed


@functools.cache
def _operations(augmentation: Augmentation) -> tuple[Any, ...]:
    """The operations of torchvision on colours and shapes."""
    if augmentation.auto_augment == "none" and not augmentation.color_jitter:
        return ()
    from torchvision.transforms import InterpolationMode, v2

    operations: list[Any] = []
    if augmentation.auto_augment == "randaugment":
        operations.append(v2.RandAugment(interpolation=InterpolationMode.BILINEAR))
    if augmentation.auto_augment == "trivialaugment":
        operations.append(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
    if strength := augmentation.color_jitter:
        operations.append(v2.ColorJitter(strength, strength, strength))
    return tuple(operations)


def _erase(image: Tensor, seed: int, probability: float) -> Tensor:
    """The image, in which a random rectangle may have become noise."""
    draw = random.Random(seed)
    if draw.random() >= probability:
        return image
    height, width = image.shape[1:]
    box = _draw_rectangle(draw, height, width, _ERASED_AREA, _ERASED_RATIO)
    if box is None:
        return image
    top, left, rows, columns = box
    noise = torch.randint(0, 256, (len(image), rows, columns), dtype=torch.uint8)
    erased = image.clone()
    erased[:, top : top + rows, left : left + columns] = noise.to(image.device)
    return erased
