"""The training images that wkd compares classes by."""

from __future__ import annotations

import torch
from torch import Tensor

from dskd.errors import InputError

LEAST = 3
"""The fewest images of a class: two centred images are one direction, and every two classes would
be the same."""
FEW = 10
"""With fewer images of a class, the distances say little."""


def images_of_classes(labels: Tensor, classes: int, most: int) -> Tensor:
    """The first training images of each class, equally many of each: int64 ``[K, N]``.

    Args:
        labels: Of all training images.
        classes: K.
        most: The largest N.

    Raises:
        InputError: A class has too few, or ``most`` is too small.
    """
    counts = labels.bincount(minlength=classes)
    fewest = int(counts.min())
    if fewest < LEAST:
        raise InputError(
            f"wkd compares classes by their training images, and class {int(counts.argmin())} has "
            f"{fewest} where {LEAST} are needed; set method.cost=classifier"
        )
    if most < LEAST:
        raise InputError(
            f"method.cost_images={most} is too small: wkd compares classes by {LEAST} images of "
            "each or more; raise it, or set method.cost=classifier"
        )
    by_class = torch.split(labels.argsort(stable=True), counts.tolist())
    return torch.stack([images[: min(fewest, most)] for images in by_class])


def few_images(compared: Tensor) -> tuple[str, ...]:
    """A line for `Method.warnings` if the classes are compared by few images.

    Args:
        compared: int64 ``[K, N]``, see `images_of_classes`.
    """
    images = compared.shape[1]
    if images >= FEW:
        return ()
    return (
        f"wkd compares the classes by {images} training images of each, as many as the smallest "
        "class or method.cost_images has, which is a rough measure; method.cost=classifier needs "
        "no images",
    )
