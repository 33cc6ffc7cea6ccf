"""Masks: from image files to a class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dskd.data.archives import Files
from dskd.data.image_files import opened
from dskd.data.pixels import PixelForm
from dskd.engine.tasks.segmentation.scans import refuse_stack
from dskd.errors import InputError, printable

MOST_VALUES = 32
"""Most values of masks; a file with more is not a mask."""
_MODES = ("1", "L", "P", "I", "I;16")

MaskValues = NDArray[np.integer[Any]]
"""The values of a mask, ``[height, width]``: uint8 if they fit, else int32."""


def read_mask(files: Files, name: str, form: PixelForm) -> MaskValues:
    """The values of a mask.

    Args:
        files: The tree of files.
        name: Name of the mask's file.
        form: Its limit of pixels holds.

    Raises:
        InputError: The file cannot be read, has colours, is a stack, or has a format that changes
            values.
    """
    with opened(files, name, form) as image:
        refuse_stack(image, files.where(name))
        image.load()
        kind, mode = image.format, image.mode
        values = np.asarray(image).astype(np.int32)
    where = files.where(name)
    if kind in ("JPEG", "MPO"):
        raise InputError(f"{where}: a JPEG does not keep the values of a mask; save masks as PNG")
    if mode not in _MODES:
        raise InputError(
            f"{where}: a mask has one value for each pixel, and this has the mode {mode}; save it "
            "with one channel"
        )
    small = values.astype(np.uint8)
    return small if np.array_equal(small, values) else values


def fit(image: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """The image resized to fit into a square of ``size``, in the middle of it, on black.

    Example:
        >>> fit(Image.new("L", (8, 4), 9), 4, Image.Resampling.NEAREST).getcolors()
        [(8, 0), (8, 9)]
    """
    left, top, width, height = placed(*image.size, size)
    square = Image.new(image.mode, (size, size))
    square.paste(image.resize((width, height), resampling), (left, top))
    return square


def placed(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Where an image lies in the square of `fit`: left, top, width and height.

    Example:
        >>> placed(8, 4, 4)
        (0, 1, 4, 2)
    """
    scale = size / max(width, height)
    inner_width, inner_height = (max(1, round(side * scale)) for side in (width, height))
    return (size - inner_width) // 2, (size - inner_height) // 2, inner_width, inner_height


def shrunk(values: MaskValues, size: int | None) -> MaskValues:
    """A mask of the size that its image has within the square of `fit`.

    The square itself is made by `in_square`, of classes: no value stands for what is outside.

    Args:
        values: Of the mask.
        size: Of the square; None keeps the mask as it is.
    """
    if size is None:
        return values
    *_, width, height = placed(values.shape[1], values.shape[0], size)
    small = Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(small)


def in_square(mask: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """The classes of a mask of `shrunk` in the middle of the square, which is background.

    Example:
        >>> in_square(np.array([[1, 2]], np.uint8), 2).tolist()
        [[1, 2], [0, 0]]
    """
    if size is None:
        return mask
    height, width = mask.shape
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(mask, ((top, size - height - top), (left, size - width - left)))


def classes_of(
    values: Sequence[int], wanted: Mapping[str, int] | None, where: str
) -> dict[str, int]:
    """The foreground classes and the value of each: class 1, class 2 and so on.

    Args:
        values: All values of the training masks.
        wanted: Values by the name of the class; None makes a class of each value but the lowest,
            which is the background.
        where: Names the masks in errors.

    Raises:
        InputError: A value that is wanted does not occur, or nothing or too much is left.

    Example:
        >>> classes_of([0, 85, 255], None, "masks")
        {'value 85': 85, 'value 255': 255}
        >>> classes_of([0, 85, 255], {"heart": 255}, "masks")
        {'heart': 255}
    """
    if wanted is not None:
        for name, value in wanted.items():
            if value not in values:
                raise InputError(
                    f"data.classes: no mask in {where} has the value {value} of {printable(name)}; "
                    f"there are {_listed(values)}"
                )
        return dict(wanted)
    if len(values) > MOST_VALUES:
        raise InputError(
            f"the masks in {where} have {len(values)} values, and at most {MOST_VALUES} can be "
            "classes; name the values of the classes with data.classes"
        )
    if len(values) < 2:
        raise InputError(f"the masks in {where} have one value only, {_listed(values)}")
    return {f"value {value}": value for value in sorted(values)[1:]}


def to_classes(
    mask: MaskValues, classes: Mapping[str, int], known: Sequence[int] | None, where: str
) -> NDArray[np.uint8]:
    """The class of each pixel: 0 for the background, then the classes in their order.

    Args:
        mask: Values.
        classes: Of `classes_of`.
        known: All values that may occur; None for any, as the rest is background.
        where: Names the mask in the error.

    Raises:
        InputError: Another value occurs.

    Example:
        >>> to_classes(np.array([[0, 7, 9]]), {"a": 9, "b": 7}, None, "mask").tolist()
        [[0, 2, 1]]
    """
    if known is not None and (strange := sorted({*np.unique(mask).tolist()} - {*known})):
        raise InputError(
            f"{where} has the value {strange[0]}, which no training mask has; there are "
            f"{_listed(known)}"
        )
    found = np.zeros(mask.shape, np.uint8)
    for number, value in enumerate(classes.values(), start=1):
        found[mask == value] = number
    return found


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(str(value) for value in sorted(values)[:12])
    return f"{shown} and {len(values) - 12} more" if len(values) > 12 else shown
