"""Image transforms of whole batches, on the device that holds them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError


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
