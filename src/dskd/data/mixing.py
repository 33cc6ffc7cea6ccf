"""Mixup and CutMix: each image of a step is mixed with its neighbour in the step.

All images of a step are mixed in the same way. The choice depends on the run's seed, the epoch and
the step alone, and the neighbour on the epoch plan. So a resumed run and any number of processes
see the same mixed images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

_PART = 1000
"""Of the random streams of an epoch; `dskd.data.epoch_plan` has the first ones."""


@dataclass(frozen=True)
class Mix:
    """How each image of a step is mixed with its neighbour.

    Attributes:
        share: Share of the image itself in its target; the neighbour has the rest.
        box: Top, bottom, left and right of the part that comes from the neighbour (CutMix). None
            blends all pixels by the share (mixup).
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def images(self, own: Tensor, neighbours: Tensor) -> Tensor:
        """The mixed images, uint8 ``[B, C, H, W]``, with blended pixels rounded.

        Args:
            own: uint8 ``[B, C, H, W]``.
            neighbours: As many.
        """
        if self.box is None:
            blended = own.float().mul_(self.share).add_(neighbours.float(), alpha=1 - self.share)
            return blended.round_().to(own.dtype)
        top, bottom, left, right = self.box
        mixed = own.clone()
        mixed[:, :, top:bottom, left:right] = neighbours[:, :, top:bottom, left:right]
        return mixed

    def targets(self, own: Tensor, neighbours: Tensor, classes: int) -> Tensor:
        """The soft targets, float32 ``[B, K]``.

        Args:
            own: Labels, int64 ``[B]``; those below 0 stand for no label and count as class 0.
            neighbours: As many.
            classes: K.

        Example:
            >>> import torch
            >>> Mix(0.75).targets(torch.tensor([0]), torch.tensor([2]), 3)
            tensor([[0.7500, 0.0000, 0.2500]])
        """
        known = (labels.clamp_min(0) for labels in (own, neighbours))
        one, other = (F.one_hot(labels, classes).float() for labels in known)
        return self.share * one + (1 - self.share) * other

    def main_labels(self, own: Tensor, neighbours: Tensor) -> Tensor:
        """The class with the larger share in each image, int64 ``[B]``."""
        return own if self.share >= 0.5 else neighbours


def draw_mix(
    seed: int,
    epoch: int,
    step: int,
    size: tuple[int, int],
    *,
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
) -> Mix | None:
    """Draws how the images of a step are mixed.

    Source: Zhang et al., mixup, ICLR 2018, arXiv 1710.09412; Yun et al., CutMix, ICCV 2019,
    arXiv 1905.04899. Share and box are drawn as torchvision.transforms.v2 draws them.

    Args:
        seed: Of the run.
        epoch: From 0.
        step: Of the epoch, from 0.
        size: Height and width of the images.
        mixup: Alpha of mixup's Beta distribution; 0 for no mixup.
        cutmix: Alpha of CutMix's; 0 for no CutMix. If both are above 0, each is taken for half of
            the steps.
        probability: Share of the steps that are mixed.

    Returns:
        None for a step that is not mixed.
    """
    random = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, epoch, _PART, step]))
    )
    mixed, choice = random.random(2)
    if mixed >= probability or not (mixup or cutmix):
        return None
    if not cutmix or (mixup and choice < 0.5):
        return Mix(float(random.beta(mixup, mixup)))
    height, width = size
    side = 0.5 * math.sqrt(1.0 - float(random.beta(cutmix, cutmix)))
    x, y = int(random.integers(width)), int(random.integers(height))
    half_width, half_height = int(side * width), int(side * height)
    left, right = max(x - half_width, 0), min(x + half_width, width)
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    return Mix(1.0 - (right - left) * (bottom - top) / (width * height), (top, bottom, left, right))
