"""The image of a sample, in any form that users give, as uint8."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from dskd.data.image_files import JPEG
from dskd.data.pixels import RGB, PixelForm, convert, orientation_of, square, turn_of

Array = NDArray[Any]
_LEVEL = 0.02
"""How far a float may lie from one of 256 levels, apart from the precision of its type."""
_FULL_DEPTH = 2**16 - 1
DAMAGED = (EOFError, OSError, SyntaxError, ValueError, struct.error, zlib.error)
"""What Pillow raises when it decodes a damaged file: SyntaxError for a PNG file."""


class Traits(NamedTuple):
    """What users should know of their images.

    Attributes:
        depth: The largest value of an image with 16 bits or more, 65535 for floats with more than
            256 levels, and 0 for all others.
        turned: Whether the EXIF orientation turned an image that is no file as Pillow opened it.
            The tag outlives what was done to the image since, such as a rotation.
    """

    depth: int = 0
    turned: bool = False


def together(traits: Iterable[Traits]) -> Traits:
    """The traits of several images, at least one.

    Example:
        >>> together([Traits(4095), Traits(0, True)])
        Traits(depth=4095, turned=True)
    """
    depths, turned = zip(*traits, strict=True)
    return Traits(max(depths), any(turned))


def sample_pixels(
    image: Any,
    size: int | None = None,
    channels: int | None = None,
    form: PixelForm = RGB,
) -> tuple[Tensor, Traits]:
    """Turns the image of a sample into uint8.

    Args:
        image: An image of Pillow, an array ``[H, W]`` or ``[H, W, C]``, or a tensor ``[H, W]`` or
            ``[C, H, W]``; uint8 from 0 to 255, or floats from 0 to 1.
        size: Height and width: the image is cropped to its central square and resized. None keeps
            the image's own.
        channels: 3 for RGB, 1 for gray; None keeps those of the image.
        form: Its `value_range`, if any, takes the place of 0 to 255 or 0 to 1. It also says how the
            image is resized. Its number of channels does not count.

    Returns:
        uint8 ``[C, H, W]``, and what the user should know of the image.

    Raises:
        ValueError: It is no image. The message is the end of a sentence about it.

    Example:
        >>> pixels, traits = sample_pixels(torch.tensor([[0.0, 1.0]]))
        >>> pixels.tolist(), traits.depth
        ([[[0, 255]]], 0)
    """
    if isinstance(image, Image.Image):
        return _of_pillow(image, size, channels, form)
    if not isinstance(image, Tensor | np.ndarray):
        raise ValueError(
            f"is a {type(image).__name__}; give an image of Pillow, an array or a tensor"
        )
    values = _channels_first(image)
    pixels, deep = _to_uint8(values, form.value_range)
    traits = Traits(_FULL_DEPTH if deep else 0)
    if size is None and channels in (None, len(pixels)):
        return torch.from_numpy(np.ascontiguousarray(pixels)), traits
    if len(pixels) not in (1, 3):
        raise ValueError(
            f"has {len(pixels)} channels; data.size and data.channels are for gray and RGB"
        )
    turned = np.ascontiguousarray(pixels.transpose(1, 2, 0).squeeze(2 if len(pixels) == 1 else ()))
    form = replace(form, value_range=None)
    return _of_pillow(Image.fromarray(turned), size, channels, form)[0], traits


def _of_pillow(
    image: Image.Image,
    size: int | None,
    channels: int | None,
    form: PixelForm,
) -> tuple[Tensor, Traits]:
    gray = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
    depths: list[float] = []
    form = replace(form, channels=channels or (1 if gray else 3))
    try:
        image = reopened(image)
        upright = convert(image, form, depths)
    except DAMAGED as error:
        raise ValueError(f"cannot be used: {error}") from error
    array = np.array(upright if size is None else square(upright, size, form))
    pixels = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    traits = Traits(
        depth=max(0, *map(int, depths)) if depths else 0,
        turned=image.format is None and turn_of(image) is not None,
    )
    return torch.from_numpy(np.ascontiguousarray(pixels)), traits


def reopened(image: Image.Image) -> Image.Image:
    """The image of a data set, so that its decoding leaves that of the data set as it is.

    Random crops decode a JPEG image at a smaller size, which it keeps. The data set may use it
    again, so it is opened again from its file.
    """
    tile = getattr(image, "tile", None)
    if image.format not in JPEG or not tile:  # no JPEG, or decoded
        return image
    file = getattr(image, "fp", None)
    again = None if file is None else Image.open(file, formats=("JPEG",))
    if again is None or getattr(again, "tile", None) != tile:
        image.load()  # the data set has chosen a size or a frame
        return image
    turn = orientation_of(image)
    if turn != orientation_of(again):  # the data set has changed the tag
        again.getexif()[ExifTags.Base.Orientation] = turn
    return again


def _channels_first(image: Tensor | Array) -> Array:
    """An image as an array ``[C, H, W]``."""
    if isinstance(image, Tensor):
        plain = image.detach().cpu()
        array = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    else:
        array = image
    if array.ndim not in (2, 3) or 0 in array.shape:
        needed = "[C, H, W]" if isinstance(image, Tensor) else "[H, W, C]"
        raise ValueError(f"has the shape {list(array.shape)}; give {needed} or [H, W]")
    if array.ndim == 2:
        return array[None]
    if isinstance(image, Tensor) and array.shape[2] <= 4 < array.shape[0]:
        raise ValueError(
            f"has the shape {list(array.shape)}, as if channels came last; give [C, H, W], as "
            "image.permute(2, 0, 1) does"
        )
    is_last = not isinstance(image, Tensor) and (array.shape[2] <= 4 or array.shape[0] > 4)
    return array.transpose(2, 0, 1) if is_last else array


def _to_uint8(values: Array, value_range: tuple[float, float] | None) -> tuple[Array, bool]:
    """Values as uint8, and whether they have more than 256 levels."""
    if values.dtype == np.uint8 and value_range is None:
        return values, False
    floating = values.dtype.kind == "f"
    if not (floating or values.dtype.kind in "iu"):
        raise ValueError(f"has values of the type {values.dtype}; give uint8 or floats from 0 to 1")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("has values that are not finite; give floats from 0 to 1")
    if value_range is not None:
        bottom, top = value_range
    elif not floating:
        raise ValueError(
            f"has values of the type {values.dtype} from {low:g} to {high:g}; give uint8, floats "
            "from 0 to 1, or data.value_range"
        )
    elif low < 0:
        raise ValueError(
            f"has values from {low:.3g} to {high:.3g}; give floats from 0 to 1, without Normalize, "
            "since a model normalises its images itself"
        )
    elif high > 1:
        raise ValueError(
            f"has floats from {low:.3g} to {high:.3g}; give uint8, floats from 0 to 1, or "
            f"data.value_range=[0,{high:g}]"
        )
    else:
        bottom, top = 0.0, 1.0
    spread = (values.astype(np.float64) - bottom) * (255 / (top - bottom))
    levels = np.clip(spread, 0, 255).round()
    near = _LEVEL + (510 * float(np.finfo(values.dtype).eps) if floating else 0)
    deep = bool((np.abs(np.clip(spread, 0, 255) - levels) > near).any())
    return levels.astype(np.uint8), deep
