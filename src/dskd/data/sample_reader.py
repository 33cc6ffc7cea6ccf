"""Read the samples of a map-style data set: an image in any form, and its label."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from dskd.data.loader import NO_LABEL
from dskd.data.pixels import PixelForm
from dskd.data.sample_pixels import Traits, sample_pixels
from dskd.errors import InputError, brief, first_line

MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class SampleReader:
    """Reads the samples of one data set.

    Attributes:
        given: The data set.
        what: Name of the split.
        size: Height and width; None keeps that of the images.
        channels: 3 for RGB, 1 for gray; None keeps what the images are.
        form: See `dskd.data.sample_pixels.sample_pixels`.
        labelled: Whether items are pairs of an image and its label.
    """

    given: Any
    what: str
    size: int | None
    channels: int | None
    form: PixelForm
    labelled: bool = True

    def __len__(self) -> int:
        """Number of samples.

        Raises:
            InputError: The data set has no length, or is empty.
        """
        try:
            count = len(self.given)
        except TypeError as error:
            raise InputError(
                f"{type_name(self.given)} has no length; give a data set that has one"
            ) from error
        if count == 0:
            raise InputError(
                f"the {self.what} images ({type_name(self.given)}) are empty; give some"
            )
        return int(count)

    def where(self, index: int) -> str:
        """Names a sample in an error."""
        return f"image {index} of the {self.what} images ({type_name(self.given)})"

    def item(self, index: int) -> tuple[Any, int]:
        """An image in the form in which the data set gives it, and its label.

        Raises:
            InputError: The data set raises an error, or the sample is no pair with a label.
        """
        where = self.where(index)
        try:
            item = self.given[index]
        except Exception as error:  # a user's class may raise anything
            raise InputError(f"{where} cannot be read: {first_line(error)}") from error
        if not self.labelled:
            return (item[0] if isinstance(item, list | tuple) and item else item), NO_LABEL
        if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
            raise InputError(f"{where} is {_described(item)}, not a pair (image, label)")
        return item[0], self._label(index, item[1])

    def read(self, index: int) -> tuple[Tensor, int, Traits]:
        """An image, uint8 ``[C, H, W]``, its label, and what the user should know of it.

        Raises:
            InputError: The sample cannot be used.
        """
        image, label = self.item(index)
        try:
            found, traits = sample_pixels(image, self.size, self.channels, self.form)
        except ValueError as error:
            raise InputError(f"{self.where(index)} {error}") from error
        return found, label, traits

    def differs(self, index: int, shape: Sequence[int], first: Sequence[int]) -> InputError:
        """The error about an image whose shape is not that of the first one."""
        if shape[0] != first[0]:
            return InputError(
                f"{self.where(index)} has {shape[0]} channels, and the first image "
                f"{first[0]}; set data.channels"
            )
        return InputError(
            f"{self.where(index)} is {shape[2]}x{shape[1]}, and the first image "
            f"{first[2]}x{first[1]}; give all one size with data.size"
        )

    def is_random(self, index: int) -> InputError:
        """The error about an image that is another one when it is read again."""
        return InputError(
            f"{self.where(index)} is another one when it is read again, and dskd augments images "
            "itself; drop the random transforms, and use data.augment, or data.flip and "
            "data.crop_padding"
        )

    def known_labels(self) -> NDArray[np.int64] | None:
        """The labels that the data set tells without reading images; None if it does not."""
        if not self.labelled:
            return np.full(len(self), NO_LABEL)
        try:
            numbers = np.asarray(_listed(self.given))
        except Exception:  # a user's class may hold anything under these names
            return None
        if numbers.dtype.kind not in "iu" or numbers.shape != (len(self),):
            return None
        return numbers.astype(np.int64)

    def _label(self, index: int, label: Any) -> int:
        """A label as a number.

        Raises:
            InputError: It is none.
        """
        value = label
        if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
            value = value.item()
        if not isinstance(value, int | np.integer):
            raise InputError(
                f"{self.where(index)} has as label {_described(label)}; give the number of its "
                "class, a whole number"
            )
        if not 0 <= value < MOST_CLASSES:
            raise self.bad_label(index, int(value))
        return int(value)

    def bad_label(self, index: int, label: int) -> InputError:
        """The error about a number that is no class."""
        return InputError(
            f"{self.where(index)} has the label {label}; give a number from 0 to "
            f"{MOST_CLASSES - 1:,}"
        )


def _listed(given: Any) -> Any:
    """The labels in ``targets`` or ``labels``, also of the data sets that others are made of."""
    if isinstance(given, Subset):
        inner = _listed(given.dataset)
        return None if inner is None else np.asarray(inner)[np.asarray(given.indices, np.int64)]
    if isinstance(given, ConcatDataset):
        parts = [_listed(part) for part in given.datasets]
        return None if any(one is None for one in parts) else np.concatenate(parts)
    if isinstance(given, TensorDataset):
        return given.tensors[1].numpy() if len(given.tensors) == 2 else None
    if getattr(given, "target_transform", None) is not None:
        return None
    lists = (getattr(given, name, None) for name in ("targets", "labels"))
    return next((one for one in lists if isinstance(one, list | tuple | np.ndarray | Tensor)), None)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Leaves the global random generators as they were before the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_generators(number: int) -> None:
    """Seeds the global random generators, so that what a data set draws depends on ``number``."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)


def type_name(given: object) -> str:
    """What a data set is called in messages."""
    return type(given).__name__


def _described(value: Any) -> str:
    """A value of any type, for a message."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim > 0:
        return f"a {type_name(value)} of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type_name(value)} with the keys {brief(list(value))}"
    if isinstance(value, tuple | list):
        return f"a {type_name(value)} of {len(value)}"
    return f"{brief(value)} ({type_name(value)})"
