"""Decode image files of any format, size and mode to uint8 images of one size."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dskd.data.archives import Files
from dskd.data.image_files import BadImageError, check_image, pillow_without_limit, read_image
from dskd.data.pixels import RGB, PixelForm, square
from dskd.errors import InputError
from dskd.runtime.memory import OR_STREAM, require_memory

_CHUNK = 64
"""Files of one task of a thread."""


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
    deepest: float | None = None,
) -> Decoded:
    """Decode image files in threads, and find every file that cannot be used.

    Args:
        files: The tree of files.
        names: Names of the image files, at least one.
        size: See `decode`.
        form: What pixels become.
        known: Images ``[C, height, width]`` that were decoded before, by the index of the name.
        deepest: The largest value of images that were decoded before, see `Decoded`.

    Raises:
        InputError: The images have different sizes and ``size`` is None, or the result does not fit
            into memory.
    """
    known = known or {}
    depths = [] if deepest is None else [deepest]
    bad: dict[int, BadImageError] = {}
    first = _first(files, names, size, form, bad)
    if first is None:
        return Decoded(torch.empty(0, form.channels, 1, 1, dtype=torch.uint8), [], bad)
    start = len(bad)  # all before it are bad
    height, width = first.shape[:2]
    require_memory(
        len(names) * first.size,
        f"{len(names)} images of {width}x{height} from {files.root}",
        OR_STREAM,
    )
    images = np.empty((len(names), form.channels, height, width), np.uint8)

    def fill(index: int) -> None:
        if index in bad:
            return
        if index in known and known[index].shape == images.shape[1:]:
            images[index] = known[index]
            return
        try:
            image = read_image(files, names[index], size, form, depths)
        except BadImageError as error:
            bad[index] = error
            return
        if image.shape != first.shape:
            raise _two_sizes(files, names[start], (height, width), names[index], image.shape)
        images[index] = image.transpose(2, 0, 1)

    with pillow_without_limit():
        in_threads(fill, len(names))
    good = [index for index in range(len(names)) if index not in bad]
    whole = torch.from_numpy(images)
    chosen = whole if len(good) == len(names) else whole[torch.tensor(good)]
    return Decoded(chosen, good, dict(sorted(bad.items())), max(depths, default=None))


@dataclass
class Checked:
    """What is known of image files after each was decoded once.

    Attributes:
        good: The index of each image that can be used.
        bad: The error of each other file, by its index.
        height: Height of the first image.
        width: Width of the first image.
        deepest: See `Decoded`.
    """

    good: Sequence[int]
    bad: dict[int, BadImageError]
    height: int
    width: int
    deepest: float | None = None


def without(bad: Mapping[int, object], count: int) -> Sequence[int]:
    """The indices below ``count`` that are not ``bad``, ascending.

    Example:
        >>> without({1: "damaged"}, 3), without({}, 3)
        ([0, 2], range(0, 3))
    """
    return [index for index in range(count) if index not in bad] if bad else range(count)


def check_all(files: Files, names: Sequence[str], one_size: bool, form: PixelForm) -> Checked:
    """Decode image files in threads to find those that cannot be used; no pixel is kept.

    Args:
        files: The tree of files.
        names: Names of the image files.
        one_size: Whether all images must have the same size.
        form: What pixels become.

    Raises:
        InputError: The images have different sizes, and must not.
    """
    depths: list[float] = []
    bad: dict[int, BadImageError] = {}
    shapes = np.zeros((len(names), 2), np.int32)

    def check(index: int) -> None:
        try:
            shapes[index] = check_image(files, names[index], form, depths)
        except BadImageError as error:
            bad[index] = error

    with pillow_without_limit():
        in_threads(check, len(names))
    good = without(bad, len(names))
    height, width = shapes[good[0]].tolist() if good else (1, 1)
    for index in good if one_size else []:
        if shapes[index].tolist() == [height, width]:
            continue
        raise _two_sizes(files, names[good[0]], (height, width), names[index], shapes[index])
    return Checked(good, dict(sorted(bad.items())), height, width, max(depths, default=None))


def _two_sizes(
    files: Files, one: str, first: Sequence[int], other: str, second: Sequence[int]
) -> InputError:
    """The error about two images of different heights and widths."""
    return InputError(
        f"{files.where(one)} is {first[1]}x{first[0]}, but {files.where(other)} "
        f"is {second[1]}x{second[0]}; give all one size with data.size"
    )


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

    in_threads(fill, len(images))
    return resized


def _first(
    files: Files,
    names: Sequence[str],
    size: int | None,
    form: PixelForm,
    bad: dict[int, BadImageError],
) -> NDArray[Any] | None:
    """The first image that decodes, whose shape all others must have; notes those before it."""
    with pillow_without_limit():
        for index, name in enumerate(names):
            try:
                return read_image(files, name, size, form)
            except BadImageError as error:
                bad[index] = error
    return None


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Call ``work`` with each number below ``count``; raise the error of the lowest number."""

    def chunk(start: int) -> None:
        for index in range(start, min(start + _CHUNK, count)):
            work(index)

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:
        for _ in pool.map(chunk, range(0, count, _CHUNK)):
            pass
