"""Turning image files of any shape and mode into bytes of one shape."""

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
"""The endings, in small letters, by which an image file is known."""

# Pillow goes by the content, not by the ending, and some of its formats (EPS) start a program.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_CHUNK = 64
_AT_ONCE = 2**27
"""Pixels that threads decode at a time, all of them together; one image has fewer."""


def is_image(name: str) -> bool:
    """Whether a file of that name counts as an image; hidden ones (``.x.png``) do not."""
    file = name.rsplit("/", 1)[-1]
    return not file.startswith(".") and PurePosixPath(file).suffix.lower() in SUFFIXES


def decode(files: Files, names: Sequence[str], size: int | None) -> Tensor:
    """Decode image files in threads.

    Args:
        files: Where they lie.
        names: Which, at least one.
        size: Height and width of the result, see `square`; None keeps the size the images have,
            which must then be one size.

    Returns:
        uint8, ``[len(names), 3, height, width]``.

    Raises:
        InputError: An image does not decode or is too large to be one, two have different sizes
            and ``size`` is None, or the result does not fit into memory.
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
    """The largest square in the middle of an image, ``size`` pixels wide and high.

    That is the shorter side resized to ``size``, then a centre crop. Shrinking by a whole number
    averages blocks of pixels (Pillow's BOX filter); any other change of size uses BICUBIC, which
    in Pillow widens its support when it shrinks and so does not alias.
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
    """An image of any mode as upright 8-bit RGB.

    The EXIF orientation is applied. What is transparent lies on white. Of 16-bit gray the upper
    eight bits are kept; of an animation the first frame.

    Raises:
        ValueError: A mode that has no such reading, such as 32-bit float.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        levels = np.asarray(image) >> 8  # of 16 bits, or of 32 with a sign: in no larger type
        np.clip(levels, 0, 255, out=levels)
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("32-bit float images have no range to go by; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _read(files: Files, name: str, size: int | None) -> NDArray[Any]:
    """One image, uint8, ``[height, width, 3]``."""
    data = files.read(name)
    try:
        with (
            Image.open(io.BytesIO(data), formats=_FORMATS) as image,
            _DECODED.room(image.width * image.height),
        ):
            sample = to_rgb(image)
            return np.asarray(sample if size is None else square(sample, size))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"{files.where(name)} is too large an image: {error}; shrink it or remove it"
        ) from error
    except Exception as error:  # Pillow's readers raise nearly anything on a mangled file
        raise InputError(
            f"cannot decode {files.where(name)}: {type(error).__name__}: {error}; "
            "replace it or remove it"
        ) from error


class _Decoded:
    """The pixels that threads decode now: large images wait for each other, not small ones."""

    def __init__(self) -> None:
        self.pixels = 0
        self._changed = threading.Condition()

    @contextmanager
    def room(self, pixels: int) -> Iterator[None]:
        """Waits until so many more are not too many; an image alone never waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self.pixels or self.pixels + pixels <= _AT_ONCE)
            self.pixels += pixels
        try:
            yield
        finally:
            with self._changed:
                self.pixels -= pixels
                self._changed.notify_all()


_DECODED = _Decoded()


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """Call ``work`` with each number below ``count``; the error of the lowest number is raised."""

    def chunk(start: int) -> None:
        for index in range(start, min(start + _CHUNK, count)):
            work(index)

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:
        for _ in pool.map(chunk, range(0, count, _CHUNK)):
            pass
