"""Open, decode and check one image file of any format, size and mode."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dskd.data.archives import Files
from dskd.data.pixels import (
    RGB,
    TURNED,
    NoRangeError,
    PixelForm,
    convert,
    orientation_of,
    square,
)
from dskd.errors import InputError

_REFUSED = frozenset(("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"))
"""Formats that start a program or that Pillow only identifies."""
JPEG = ("JPEG", "MPO")
"""Names of the formats that are JPEG; the second has several images, of which the first counts."""
_COMMON = ("JPEG", "PNG", "WEBP")
"""Formats that are tried first, which saves time."""
_MAX_PIXELS = 2**27
"""Most pixels that all threads together decode at a time. A single image may have more."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read: all that Pillow and its plug-ins can read safely."""
    Image.init()
    common = [name for name in _COMMON if name in Image.OPEN]
    return (*common, *sorted(Image.OPEN.keys() - _REFUSED - set(common)))


@functools.cache
def suffixes() -> frozenset[str]:
    """The lower-case suffixes of image files."""
    readable = formats()
    return frozenset(
        suffix.lower() for suffix, name in Image.registered_extensions().items() if name in readable
    )


def is_image(name: str) -> bool:
    """Whether a file name has an image suffix; hidden files (``.x.png``) do not count."""
    file = name.rsplit("/", 1)[-1]
    return not file.startswith(".") and PurePosixPath(file).suffix.lower() in suffixes()


class BadImageError(InputError):
    """An image file cannot be used. `reason` says why in a few words, for counting."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadImageError], tuple[str, str]]:
        """For its way from a worker process."""
        return BadImageError, (str(self), self.reason)


def read_image(
    files: Files,
    name: str,
    size: int | None,
    form: PixelForm = RGB,
    depths: list[float] | None = None,
) -> NDArray[Any]:
    """Decode one image to uint8, ``[height, width, C]``.

    Args:
        files: The tree of files.
        name: Name of the image file.
        size: See `decode`.
        form: What pixels become.
        depths: Gets the largest value of an image with more than 8 bits.

    Raises:
        BadImageError: The image cannot be used.
    """
    with opened(files, name, form) as image:
        sample = convert(image, form, depths)
        array = np.asarray(sample if size is None else square(sample, size, form))
    return array[:, :, None] if array.ndim == 2 else array


def check_image(
    files: Files, name: str, form: PixelForm = RGB, depths: list[float] | None = None
) -> tuple[int, int]:
    """Decode one image only to see that it can be used.

    All bytes of the file are decoded; a JPEG becomes an image of an eighth of its size, which takes
    less time.

    Args:
        files: The tree of files.
        name: Name of the image file.
        form: What pixels become.
        depths: Gets the largest value of an image with more than 8 bits.

    Returns:
        Height and width of the upright image.

    Raises:
        BadImageError: The image cannot be used.
    """
    with opened(files, name, form) as image:
        width, height = image.size
        eighth = max(1, width // 8), max(1, height // 8)
        shrunk = image.format in JPEG and image.draft(None, eighth)
        found = convert(image, form, depths)
        turned = orientation_of(image) in TURNED
    if not shrunk:
        return found.height, found.width
    return (width, height) if turned else (height, width)


@contextmanager
def opened(files: Files, name: str, form: PixelForm) -> Iterator[Image.Image]:
    """Open an image file. What goes wrong within the block is an error about that file.

    Args:
        files: The tree of files.
        name: Name of the image file.
        form: Its limit of pixels holds.

    Yields:
        The image, whose pixels are not decoded yet.

    Raises:
        BadImageError: The file cannot be read, is no image, has too many pixels, or the block
            failed.
    """
    where = files.where(name)
    try:
        data = files.read(name)
    except InputError as error:
        raise BadImageError(str(error), "unreadable") from error
    if not data:
        raise BadImageError(f"cannot decode {where}: it is empty", "empty")
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            pixels = image.width * image.height
            if pixels > form.max_pixels:
                raise BadImageError(
                    f"{where} is too large an image: {pixels:,} pixels, and data.max_pixels is "
                    f"{form.max_pixels:,}; raise it, shrink the image or remove it",
                    "too many pixels",
                )
            with _BUDGET.reserve(pixels):
                yield image
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow raises many types on a damaged file
        floats = isinstance(error, NoRangeError)
        reason = f"{'ValueError' if floats else type(error).__name__}: {error}"
        if isinstance(error, UnidentifiedImageError):  # whose text has the address of an object
            reason = "Pillow knows no image format that it has"
        raise BadImageError(
            f"cannot decode {where}: {reason}; replace it or remove it",
            "floats without data.value_range" if floats else "damaged",
        ) from error


_PILLOW = threading.RLock()


@contextmanager
def pillow_without_limit() -> Iterator[None]:
    """Turns Pillow's own limit of pixels off, which is checked before ``max_pixels`` can be."""
    with _PILLOW:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


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
