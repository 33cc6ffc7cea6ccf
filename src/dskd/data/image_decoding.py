"""Decode image files of any size and mode to uint8 images of one size."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from dskd.data.archives import Files
from dskd.errors import InputError
from dskd.runtime.memory import require_memory

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")
) | frozenset((".pgm", ".pbm", ".pnm"))
"""Lower-case suffixes of image files."""

# Pillow detects the format by the content, and some formats (EPS) would start a program.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_CHUNK = 64
"""Files of one task of a thread."""
_MAX_PIXELS = 2**27
"""Most pixels that all threads together decode at a time; Pillow allows fewer in one image."""


def is_image(name: str) -> bool:
    """Whether a file name has an image suffix; hidden files (``.x.png``) do not count."""
    file = name.rsplit("/", 1)[-1]
    return not file.startswith(".") and PurePosixPath(file).suffix.lower() in SUFFIXES


def decode(files: Files, names: Sequence[str], size: int | None) -> Tensor:
    """Decode image files in threads.

    Args:
        files: The tree of files.
        names: Names of the image files, at least one.
        size: Height and width of the result, see `square`; None keeps the size of the images,
            which must then all have the same size.

    Returns:
        uint8, ``[len(names), 3, height, width]``.

    Raises:
        InputError: An image does not decode or has too many pixels, the images have different
            sizes and ``size`` is None, or the result does not fit into memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        first = _read(files, names[0], size)
        height, width = first.shape[:2]
        require_memory(
            len(names) * first.size, f"{len(names)} images of {width}x{height} from {files.root}"
        )
        images = np.empty((len(names), 3, height, width), np.uint8)

        def fill(index: int) -> None:
            image = _read(files, names[index], size)
            if image.shape != first.shape:
                raise InputError(
                    f"{files.where(names[0])} is {width}x{height}, but {files.where(names[index])} "
                    f"is {image.shape[1]}x{image.shape[0]}; give all one size with data.size"
                )
            images[index] = image.transpose(2, 0, 1)

        _in_threads(fill, len(names))
    return torch.from_numpy(images)


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize decoded images, see `square`.

    Args:
        images: uint8, ``[N, 3, height, width]``.
        size: Height and width of the result.

    Returns:
        uint8, ``[N, 3, size, size]``.

    Raises:
        InputError: The result does not fit into memory.
    """
    if images.shape[2:] == (size, size):
        return images
    require_memory(len(images) * 3 * size * size, f"{len(images)} images of {size}x{size}")
    resized = np.empty((len(images), 3, size, size), np.uint8)

    def fill(index: int) -> None:
        image = Image.fromarray(np.ascontiguousarray(images[index].transpose(1, 2, 0)))
        resized[index] = np.asarray(square(image, size)).transpose(2, 0, 1)

    _in_threads(fill, len(images))
    return resized


def square(image: Image.Image, size: int) -> Image.Image:
    """Crop the largest centred square and resize it to ``size`` pixels.

    Shrinking by a whole factor averages blocks of pixels (Pillow's BOX filter). All other factors
    use BICUBIC, which in Pillow is antialiased.
    """
    if image.size == (size, size):
        return image
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    whole = side % size == 0
    return image.resize(
        (size, size),
        Image.Resampling.BOX if whole else Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to upright 8-bit RGB.

    The EXIF orientation is applied. Transparent pixels are blended with white. 16-bit gray keeps
    its upper eight bits; an animation keeps its first frame.

    Raises:
        ValueError: The mode has no fixed range (32-bit float).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        levels = np.asarray(image) >> 8  # 16 bits, or 32 bits with a sign
        np.clip(levels, 0, 255, out=levels)
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("32-bit float images have no fixed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _read(files: Files, name: str, size: int | None) -> NDArray[Any]:
    """Decode one image to uint8, ``[height, width, 3]``."""
    data = files.read(name)
    try:
        with (
            Image.open(io.BytesIO(data), formats=_FORMATS) as image,
            _BUDGET.reserve(image.width * image.height),
        ):
            sample = to_rgb(image)
            return np.asarray(sample if size is None else square(sample, size))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"{files.where(name)} is too large an image: {error}; shrink it or remove it"
        ) from error
    except Exception as error:  # Pillow raises many types on a damaged file
        raise InputError(
            f"cannot decode {files.where(name)}: {type(error).__name__}: {error}; "
            "replace it or remove it"
        ) from error


class _PixelBudget:
    """Limits the pixels that all threads decode at a time, so that large images take turns.

    Attributes:
        pixels: Pixels that are decoded now.
    """

    def __init__(self) -> None:
        self.pixels = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until ``pixels`` more fit into the budget; a single image never waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self.pixels or self.pixels + pixels <= _MAX_PIXELS)
            self.pixels += pixels
        try:
            yield
        finally:
            with self._changed:
                self.pixels -= pixels
                self._changed.notify_all()


_BUDGET = _PixelBudget()


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """Call ``work`` with each number below ``count``; raise the error of the lowest number."""

    def chunk(start: int) -> None:
        for index in range(start, min(start + _CHUNK, count)):
            work(index)

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:
        for _ in pool.map(chunk, range(0, count, _CHUNK)):
            pass
