"""How training images are augmented: the settings, and the named sets of them.

Nothing here imports torch, so that a recipe can be read without it. `dskd.data.transforms` has the
operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

AugmentSet = Literal["none", "cifar", "imagenet", "strong"]
"""A named set of augmentations."""
AutoAugment = Literal["none", "randaugment", "trivialaugment"]
"""A policy that draws its operations from a fixed list."""
Interpolation = Literal["bilinear", "bicubic"]
"""How an image is resized."""

IMAGENET_CROP = (0.08, 1.0)
SETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "none": {},
        "cifar": {"crop_padding": 4, "flip": True},
        "imagenet": {"crop_scale": IMAGENET_CROP, "flip": True},
        # As torchvision trains since "How to Train State-Of-The-Art Models Using TorchVision's
        # Latest Primitives", https://pytorch.org/blog, November 2021.
        "strong": {
            "crop_scale": IMAGENET_CROP,
            "flip": True,
            "auto_augment": "trivialaugment",
            "random_erasing": 0.1,
        },
    }
)
"""The settings that each named set stands for."""


@dataclass(frozen=True)
class Augmentation:
    """Random operations on training images, besides the padded crop and the flip.

    They draw from the seed of each sample in the epoch plan. So they depend on the epoch and the
    sample only, and an image has any number of views.

    Attributes:
        crop_scale: Smallest and largest part of the image's area that a random resized crop keeps;
            None for no such crop. Source: Szegedy et al., "Going Deeper with Convolutions", CVPR
            2015.
        crop_ratio: Smallest and largest ratio of the crop's width to its height.
        auto_augment: ``randaugment`` (two operations of magnitude 9; Cubuk et al., NeurIPS 2020) or
            ``trivialaugment`` (one operation of random magnitude; Mueller and Hutter, ICCV 2021).
        color_jitter: Largest relative change of brightness, contrast and saturation.
        random_erasing: Probability that a rectangle of the image becomes noise. Source: Zhong et
            al., AAAI 2020.
        interpolation: How the random resized crop is resized.

    Example:
        >>> bool(Augmentation()), Augmentation(color_jitter=0.4).used()
        (False, ['color_jitter'])
    """

    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    auto_augment: AutoAugment = "none"
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    interpolation: Interpolation = "bicubic"

    def used(self) -> list[str]:
        """The names of the operations that are in use."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["crop_ratio"], values["interpolation"]
        return [name for name, value in values.items() if value not in (None, "none", 0)]

    def __bool__(self) -> bool:
        return bool(self.used())


NO_AUGMENTATION = Augmentation()
