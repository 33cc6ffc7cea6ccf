"""Random changes of training images, each with its mask and its seeds.

All randomness comes from the seeds of the samples, so a run that goes on sees the same images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd.data.epoch_plan import draw_below

AugmentSet = Literal["none", "standard"]
"""A named set of augmentations."""
SETS: Mapping[AugmentSet, Mapping[str, Any]] = MappingProxyType(
    {
        "none": {},
        "standard": {"flip": True, "rotate": 30.0, "zoom": 1.25, "shift": 0.1, "gamma": 1.5},
    }
)
"""The settings that each named set stands for."""
_OWN = 0x51D7348D2F5E1A6B
"""Tells the random numbers of augmentations from those that methods draw from the same seeds."""
_LEVELS = 2**24


@dataclass(frozen=True)
class MaskAugmentation:
    """How training images are changed. Every value is drawn for each image and epoch.

    Attributes:
        flip: Whether half of the images are mirrored left to right.
        rotate: Largest rotation to either side, in degrees. Angles are uniform.
        zoom: Largest factor by which an image grows or shrinks, 1 for none. Its logarithm is
            uniform.
        shift: Largest shift in each direction, as a share of the side. Shifts are uniform.
        gamma: Largest exponent of the brightness x, and the inverse of the smallest one: ``x^g``
            for x from 0 to 1. 1 for none. Its logarithm is uniform.

    Example:
        >>> bool(MaskAugmentation()), bool(MaskAugmentation(flip=True))
        (False, True)
    """

    flip: bool = False
    rotate: float = 0.0
    zoom: float = 1.0
    shift: float = 0.0
    gamma: float = 1.0

    def __bool__(self) -> bool:
        return self != MaskAugmentation()

    def apply(
        self, images: Tensor, labels: tuple[Tensor, ...], seeds: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Changes images, and with them what is known of their pixels.

        Images are interpolated linearly; a pixel of a label map gets the label of the nearest one.
        What comes in from outside the image is black, and background.

        Args:
            images: uint8 ``[B, C, H, W]``.
            labels: Each int64 ``[B, H, W]``, 0 for the background.
            seeds: int64 ``[B]``, a random number for each image.

        Returns:
            Images and labels of the same shapes and types.
        """
        if not self:
            return images, labels
        drawn = draw_below(seeds ^ _OWN, 6, _LEVELS).float() / _LEVELS
        mirror, *signed = (drawn[:, 0] < 0.5, *(2 * drawn[:, 1:] - 1).unbind(1))
        angle, zoom, right, down, gamma = signed
        grid = self._grid(images, mirror, angle, zoom, torch.stack([right, down], 1))
        moved = F.grid_sample(images.float(), grid, align_corners=False)
        exponent = torch.exp(gamma * math.log(self.gamma)).view(-1, 1, 1, 1)
        changed = 255 * (moved / 255).clamp(0, 1) ** exponent
        nearest = (
            F.grid_sample(one[:, None].double(), grid.double(), "nearest", align_corners=False)
            for one in labels
        )
        return changed.round().to(torch.uint8), tuple(one[:, 0].long() for one in nearest)

    def _grid(
        self, images: Tensor, mirror: Tensor, angle: Tensor, zoom: Tensor, shift: Tensor
    ) -> Tensor:
        """Where each pixel comes from, ``[B, H, W, 2]``. Angle, zoom and shift are in [-1, 1]."""
        height, width = images.shape[2:]
        turned = angle * math.radians(self.rotate)
        scale = torch.exp(-zoom * math.log(self.zoom))
        cosine, sine = scale * turned.cos(), scale * turned.sin()
        side = 1 - 2 * mirror.to(cosine) * self.flip
        # Coordinates go from -1 to 1 on both sides, so a rotation of other than squares stretches.
        across, along = sine * height / width, sine * width / height
        moved = 2 * self.shift * shift
        rows = [
            torch.stack([cosine * side, -across, moved[:, 0]], 1),
            torch.stack([along * side, cosine, moved[:, 1]], 1),
        ]
        return F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
