"""Decode image files of any format, size and mode to uint8 images of one size."""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dskd.data.archives import Files
from dskd.data.pixels import RGB, NoRangeError, PixelForm, convert, square
from dskd.errors import InputError
from dskd.runtime.memory import require_memory

_REFUSED = frozenset(("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"))
"""Formats that start a program or that Pillow only identifies."""
_CHUNK = 64
"""Files of one task of a thread."""
_MAX_PIXELS = 2**27
"""Most pixels that all threads together decode at a time. A single image may have more."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read: all that Pillow and its plug-ins can read safely."""
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - _REFUSED))


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


@dataclass
class Decoded:
    """What became of the files.

    Attributes:
        images: uint8, ``[len(good), C, height, width]``.
        good: The index of each image among the names.
        bad: The error of each other file, by its index.
        deepest: The largest value of the images with 16 bits or more; None if there was none.
    """

    images: Tensor
    good: list[int]
    bad: dict[int, BadImageError]
    deepest: float | None = None


def decode(files: Files, names: Sequence[str], size: int | None, form: PixelForm = RGB) -> Tensor:
    """Decode image files in threads; the first that cannot be used is an error.

    Args:
        files: The tree of files.
        names: Names of the image files, at least one.
        size: Height and width of the result, see `square`; None keeps the size of the images,
            which must then all have the same size.
        form: What pixels become.

    Returns:
        uint8, ``[len(names), C, height, width]``.

    Raises:
        InputError: An image does not decode or has too many pixels, the images have different
            sizes and ``size`` is None, or the result does not fit into memory.
    """
    found = decode_all(files, names, size, form)
    for error in found.bad.values():
        raise error
    return found.images


def decode_all(
    files: Files,
    names: Sequence[str],
    size: int | None,
    form: PixelForm = RGB,
    known: Mapping[int, NDArray[np.uint8]] | None = None,
) -> Decoded:
    """Decode image files in threads, and find every file that cannot be used.

    Args:
        files: The tree of files.
        names: Names of the image files, at least one.
        size: See `decode`.
        form: What pixels become.
        known: Images ``[C, height, width]`` that were decoded before, by the index of the name.

    Raises:
        InputError: The images have different sizes and ``size`` is None, or the result does not fit
            into memory.
    """
    known = known or {}
    depths: list[float] = []
    bad: dict[int, BadImageError] = {}
    first = _first(files, names, size, form, bad)
    if first is None:
        return Decoded(torch.empty(0, form.channels, 1, 1, dtype=torch.uint8), [], bad)
    start = len(bad)  # all before it are bad
    height, width = first.shape[:2]
    require_memory(
        len(names) * first.size, f"{len(names)} images of {width}x{height} from {files.root}"
    )
    images = np.empty((len(names), form.channels, height, width), np.uint8)

    def fill(index: int) -> None:
        if index in bad:
            return
        if index in known and known[index].shape == images.shape[1:]:
            images[index] = known[index]
            return
        try:
            image = _read(files, names[index], size, form, depths)
        except BadImageError as error:
            bad[index] = error
            return
        if image.shape != first.shape:
            raise InputError(
                f"{files.where(names[start])} is {width}x{height}, but {files.where(names[index])} "
                f"is {image.shape[1]}x{image.shape[0]}; give all one size with data.size"
            )
        images[index] = image.transpose(2, 0, 1)

    with _pillow_without_limit():
        _in_threads(fill, len(names))
    good = [index for index in range(len(names)) if index not in bad]
    whole = torch.from_numpy(images)
    chosen = whole if len(good) == len(names) else whole[torch.tensor(good)]
    return Decoded(chosen, good, dict(sorted(bad.items())), max(depths, default=None))


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


def _first(
    files: Files,
    names: Sequence[str],
    size: int | None,
    form: PixelForm,
    bad: dict[int, BadImageError],
) -> NDArray[Any] | None:
    """The first image that decodes, whose shape all others must have; notes those before it."""
    with _pillow_without_limit():
        for index, name in enumerate(names):
            try:
                return _read(files, name, size, form)
            except BadImageError as error:
                bad[index] = error
    return None


def _read(
    files: Files,
    name: str,
    size: int | None,
    form: PixelForm = RGB,
    depths: list[float] | None = None,
) -> NDArray[Any]:
    """Decode one image to uint8, ``[height, width, C]``."""
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
                sample = convert(image, form, depths)
                array = np.asarray(sample if size is None else square(sample, size))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow raises many types on a damaged file
        floats = isinstance(error, NoRangeError)
        kind = "ValueError" if floats else type(error).__name__
        raise BadImageError(
            f"cannot decode {where}: {kind}: {error}; replace it or remove it",
            "floats without data.value_range" if floats else "damaged",
        ) from error
    return array[:, :, None] if array.ndim == 2 else array


_PILLOW = threading.RLock()


@contextmanager
def _pillow_without_limit() -> Iterator[None]:
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


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """Call ``work`` with each number below ``count``; raise the error of the lowest number."""

    def chunk(start: int) -> None:
        for index in range(start, min(start + _CHUNK, count)):
            work(index)

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:
        for _ in pool.map(chunk, range(0, count, _CHUNK)):
            pass
