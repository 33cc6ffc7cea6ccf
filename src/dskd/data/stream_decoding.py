"""Decode the images of a batch from their files, cropped and augmented as an epoch plan says."""

from __future__ import annotations

import functools
import importlib
import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dskd.data.archives import Files
from dskd.data.augmentation import NO_AUGMENTATION, Augmentation
from dskd.data.image_files import JPEG, opened, pillow_without_limit, read_image
from dskd.data.pixels import TURNED, PixelForm, convert, orientation_of
from dskd.data.transforms import Box, crop_and_flip, distort, draw_box, resize, seeds_of_parts
from dskd.errors import InputError, first_line

log = logging.getLogger("dskd")


class Job(NamedTuple):
    """What a batch is made of.

    Arrays travel to a worker process faster than tensors.

    Attributes:
        indices: ``[B]``, the images.
        dy: ``[B]``, as in the epoch plan; so are the next three. None without augmentation.
        dx: ``[B]``.
        flip: ``[B]``.
        seeds: ``[B]``.
        padding: Of the epoch plan.
        augmentation: Of the epoch plan.
    """

    indices: NDArray[np.int64]
    dy: NDArray[np.int64] | None = None
    dx: NDArray[np.int64] | None = None
    flip: NDArray[np.bool_] | None = None
    seeds: NDArray[np.int64] | None = None
    padding: int = 0
    augmentation: Augmentation = NO_AUGMENTATION


class Decoder(ABC):
    """Makes the images of batches.

    Attributes:
        shape: Channels, height and width of an image.
    """

    shape: tuple[int, int, int]

    @abstractmethod
    def whole(self, index: int) -> Tensor:
        """An image without augmentation, uint8 ``[C, H, W]``."""

    @abstractmethod
    def random_crop(self, index: int, seed: int, augmentation: Augmentation) -> Tensor:
        """A random resized crop of an image, uint8 ``[C, H, W]``."""

    def __call__(self, job: Job) -> Tensor:
        """The images of a batch, uint8 ``[B, C, H, W]``.

        Random crops are in torch's usual memory format, in which they are resized. All others are
        channels-last, as those of a `dskd.data.loader.MemoryLoader`.

        Raises:
            InputError: An image cannot be used.
        """
        seeds = None if job.seeds is None else torch.from_numpy(job.seeds)
        crops = None
        if seeds is not None and job.augmentation.crop_scale is not None:
            crops = [crop for crop, _ in seeds_of_parts(seeds)]
        images = torch.empty(
            (len(job.indices), *self.shape),
            dtype=torch.uint8,
            memory_format=torch.channels_last if crops is None else torch.contiguous_format,
        )
        with pillow_without_limit():
            for row, index in enumerate(job.indices.tolist()):
                if crops is None:
                    image = self.whole(index)
                else:
                    image = self.random_crop(index, crops[row], job.augmentation)
                if job.flip is not None and job.flip[row] and not job.padding:
                    image = image.flip(2)
                images[row] = image
        if job.padding and job.dy is not None and job.dx is not None and job.flip is not None:
            dy, dx, flip = map(torch.from_numpy, (job.dy, job.dx, job.flip))
            images = crop_and_flip(images, dy, dx, flip, job.padding)
        return images if seeds is None else distort(images, seeds, job.augmentation)


@dataclass(frozen=True)
class BatchDecoder(Decoder):
    """Decodes batches of image files.

    Attributes:
        files: The image files; their names are in the order of the indices.
        shape: See `Decoder`.
        resized: Whether images are cropped and resized; otherwise each file has that size.
        form: What pixels become.
    """

    files: Files
    shape: tuple[int, int, int]
    resized: bool
    form: PixelForm

    def whole(self, index: int) -> Tensor:
        """See `Decoder.whole`."""
        name = self.files.names[index]
        _, height, width = self.shape
        array = read_image(self.files, name, height if self.resized else None, self.form)
        if array.shape[:2] != (height, width):
            raise InputError(
                f"{self.files.where(name)} is {array.shape[1]}x{array.shape[0]}, and was "
                f"{width}x{height} when it was checked; put the image of that size back"
            )
        return torch.from_numpy(np.array(array)).permute(2, 0, 1)

    def random_crop(self, index: int, seed: int, augmentation: Augmentation) -> Tensor:
        """See `Decoder.random_crop`."""
        with opened(self.files, self.files.names[index], self.form) as image:
            found = decode_for_crop(image, self.shape, self.form, seed, augmentation)
            return resize(*found, self.shape[1:], augmentation)


def decode_for_crop(
    image: Image.Image,
    shape: tuple[int, int, int],
    form: PixelForm,
    seed: int,
    augmentation: Augmentation,
) -> tuple[Tensor, Box]:
    """Decode an image, smaller where the crop allows it.

    Pillow decodes a JPEG image at a half, a quarter or an eighth of its size, which takes less
    time. The crop still has at least the pixels of the result. The image keeps this size, so it
    must not be used again, see `dskd.data.sample_pixels.reopened`.

    Returns:
        uint8 ``[C, height, width]``, and the crop in it.
    """
    jpeg = image.format in JPEG
    orientation = orientation_of(image) if jpeg else 1
    if not jpeg:
        image = convert(image, form)
    width, height = image.size
    if orientation in TURNED:
        width, height = height, width
    top, left, rows, columns = draw_box(seed, height, width, augmentation)
    shrink = min(rows / shape[1], columns / shape[2])
    if jpeg:
        factor = max((n for n in (2, 4, 8) if n <= shrink), default=1)
        if factor == 1 and orientation == 1 and (pixels := _decode_jpeg(image, form)) is not None:
            return pixels, (top, left, rows, columns)
        image.draft(None, (image.width // factor, image.height // factor))
        image = convert(image, form)
    y, x = image.height / height, image.width / width
    low, first = int(top * y), int(left * x)
    rows = min(max(1, round(rows * y)), image.height - low)
    columns = min(max(1, round(columns * x)), image.width - first)
    # Pillow's own crop: the pixels around it need not become those of an array.
    array = torch.from_numpy(np.array(image.crop((first, low, first + columns, low + rows))))
    tensor = array.permute(2, 0, 1) if array.dim() == 3 else array[None]
    return tensor, (0, 0, rows, columns)


def _decode_jpeg(image: Image.Image, form: PixelForm) -> Tensor | None:
    """The pixels of a common JPEG by torchcodec, which takes less time than Pillow.

    Returns:
        uint8 ``[3, height, width]``, equal to Pillow's; None if Pillow has to decode the image, or
        to say what is wrong with it.
    """
    decode, file = _torchcodec(), getattr(image, "fp", None)
    common = image.mode == "RGB" and form.channels == 3 and form.value_range is None
    if decode is None or not common or not isinstance(file, io.BytesIO):
        return None
    try:
        pixels = decode(file.getvalue())
    except RuntimeError:  # the file is damaged
        return None
    return pixels if pixels.shape == (3, image.height, image.width) else None


def import_for_crops() -> None:
    """Import what random crops need, so that not every worker process has to."""
    import torchvision.transforms.v2.functional  # noqa: F401

    _torchcodec()


@functools.cache
def _torchcodec() -> Callable[[bytes], Tensor] | None:
    """The decoder of JPEG of torchcodec; None if it is not installed."""
    try:
        decoders = importlib.import_module("torchcodec.decoders")  # takes two seconds
    except ImportError:
        return None
    except (OSError, RuntimeError) as error:  # built for another torch
        log.warning(
            "torchcodec cannot be used here (%s); Pillow decodes all images", first_line(error)
        )
        return None
    return cast(Callable[[bytes], Tensor], decoders.decode_jpeg)
