"""Dice and the 95th percentile of the Hausdorff distance, by MONAI."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dskd.runtime.extras import import_extra

CHUNK = 2**24
"""Pixels, counted in each class, that are compared at a time: memory does not grow with images."""


@dataclass(frozen=True)
class ClassScores:
    """How well the masks of one class are predicted.

    Attributes:
        name: Of the class.
        dice: Mean over the images, in percent.
        hd95: Mean over the images where it is defined, in pixels; None if it is nowhere.
        hd95_images: How many images these are.
    """

    name: str
    dice: float
    hd95: float | None
    hd95_images: int


def dice_scores(predictions: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """The Dice score of each image and class: ``2 |P n Y| / (|P| + |Y|)``.

    An image without any pixel of a class has the score 1 if none is predicted, and 0 otherwise
    (MONAI's ``ignore_empty=False``), so that false pixels count.

    Args:
        predictions: The class of each pixel, ``[N, H, W]``, of any integer type.
        masks: The true class of each pixel, of the same shape.
        num_classes: Number of classes K, with the background 0.

    Returns:
        float32 ``[N, K - 1]``, from 0 to 1, without the background.

    Raises:
        InputError: MONAI is not installed.

    Example:
        >>> masks = torch.tensor([[[1, 1], [0, 0]]])
        >>> round(dice_scores(torch.tensor([[[1, 0], [0, 0]]]), masks, 2).item(), 4)
        0.6667
    """
    metric = _monai().DiceHelper(
        include_background=False, reduction="none", ignore_empty=False, get_not_nans=False
    )
    return _by_chunks(metric, predictions, masks, num_classes)


def hd95(predictions: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """The 95th percentile of the distances between the borders of each image and class, in pixels.

    It is the larger one of the two directions. Where prediction or mask has no pixel of the class,
    there is no border, and the value is NaN.

    Args:
        predictions: See `dice_scores`.
        masks: See `dice_scores`.
        num_classes: See `dice_scores`.

    Returns:
        float32 ``[N, K - 1]``.

    Raises:
        InputError: MONAI is not installed.

    Example:
        >>> masks = torch.zeros(1, 1, 9, dtype=torch.int64)
        >>> masks[0, 0, 0] = 1
        >>> hd95(masks.roll(3, 2), masks, 2).item()
        3.0
    """
    found = _by_chunks(_hausdorff, predictions, masks, num_classes)
    return found.masked_fill(found.isinf(), math.nan)


def class_scores(predictions: Tensor, masks: Tensor, classes: Sequence[str]) -> list[ClassScores]:
    """Dice and HD95 of each class.

    Args:
        predictions: See `dice_scores`.
        masks: See `dice_scores`.
        classes: Names of the classes, the background first.
    """
    dice = dice_scores(predictions, masks, len(classes))
    distances = hd95(predictions, masks, len(classes))
    found = []
    for column, name in enumerate(classes[1:]):
        defined = distances[:, column][~distances[:, column].isnan()].double()
        mean = defined.mean().item() if len(defined) else None
        score = 100 * dice[:, column].double().mean().item()
        found.append(ClassScores(name, score, mean, len(defined)))
    return found


def _hausdorff(predicted: Tensor, true: Tensor) -> Tensor:
    with warnings.catch_warnings():  # of images without a border, and of MONAI's own arguments
        warnings.simplefilter("ignore")
        found: Tensor = _monai().compute_hausdorff_distance(
            predicted, true, include_background=False, percentile=95
        )
    return found


def _by_chunks(metric: Any, predictions: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """A metric of one-hot masks, computed for a few images at a time."""
    parts = []
    size = max(1, CHUNK // (num_classes * math.prod(masks.shape[1:])))
    for predicted, true in zip(
        torch.split(predictions, size), torch.split(masks, size), strict=True
    ):
        found = metric(_one_hot(predicted, num_classes), _one_hot(true, num_classes))
        parts.append(found.float().cpu())
    return torch.cat(parts)


def _one_hot(masks: Tensor, num_classes: int) -> Tensor:
    """One-hot masks in one byte for each class and pixel, ``[N, K, H, W]``."""
    classes = torch.arange(num_classes, device=masks.device)
    return (masks[:, None] == classes.view(-1, 1, 1)).to(torch.uint8)


def _monai() -> Any:
    needed = "segmentation needs MONAI, which is not installed;"
    return import_extra("monai.metrics", "segmentation", needed)
