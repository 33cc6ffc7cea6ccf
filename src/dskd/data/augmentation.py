"""Crops and flips of a whole batch, on the device that holds it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.errors import InputError


def crop_and_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Each image padded with zeros, cropped to its own size at its offset, and mirrored or not.

    Args:
        images: ``[B, C, H, W]``, any type.
        dy: int64 ``[B]``, first row of the crop, from 0 to 2 * padding.
        dx: int64 ``[B]``, first column of the crop, from 0 to 2 * padding.
        flip: bool ``[B]``.
        padding: Pixels of zeros on every side.

    Returns:
        ``[B, C, H, W]``, with the channels last in memory.

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
    """The images as they are, then turned by 90, 180 and 270 degrees.

    Args:
        images: ``[B, C, H, H]``, square.

    Returns:
        ``[4 B, C, H, H]``: first all images, then all of them turned once, and so on.

    Raises:
        InputError: They are not square.

    Example:
        >>> rotations(torch.arange(4).view(1, 1, 2, 2))[1].tolist()
        [[[1, 3], [0, 2]]]
    """
    if images.shape[2] != images.shape[3]:
        raise InputError(
            f"images must be square to be turned, got {list(images.shape[1:])}; set data.size"
        )
    return torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
