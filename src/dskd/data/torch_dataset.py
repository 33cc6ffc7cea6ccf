"""Read torch's map-style data sets of (image, label) pairs into memory, once."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from dskd.data.dataset import Dataset, Samples, Split, channel_statistics, distinct_names
from dskd.data.loader import NO_LABEL
from dskd.data.pixels import RGB, PixelForm
from dskd.data.sample_pixels import sample_pixels
from dskd.data.subset import HELD_OUT, hold_out
from dskd.errors import InputError, brief, first_line
from dskd.runtime.memory import require_memory

log = logging.getLogger("dskd")

_READ_TWICE = 16
"""Samples that are read twice, to see whether the data set gives the same image again."""
_MOST_CLASSES = 1_000_000
_NEEDS_TEST = (
    "give data={'dataset': train, 'test': test}, or drop data.val_fraction=0 to hold a part out"
)


@dataclass(frozen=True)
class TorchSplits:
    """Data sets of (image, label) pairs, such as an ``ImageFolder`` or a ``TensorDataset``.

    Attributes:
        train: The training images: anything with a length whose items are pairs.
        test: The test images; None holds out a part of the training images.
        validation: The validation images; may be None.
        unlabelled: Images without labels, which join the training; may be None. Items are images,
            or tuples of an image and more, which is ignored.
    """

    train: Any
    test: Any = None
    validation: Any = None
    unlabelled: Any = None

    def read(
        self,
        *,
        size: int | None,
        channels: int | None,
        val_fraction: float | None,
        form: PixelForm = RGB,
    ) -> Dataset:
        """Reads every image once, as uint8.

        Images may be those of Pillow, arrays ``[H, W]`` or ``[H, W, C]``, or tensors ``[H, W]`` or
        ``[C, H, W]``, with uint8 from 0 to 255 or floats from 0 to 1. Labels are whole numbers
        from 0. The names of the classes are those of the data set's ``classes``, if it has them.

        Args:
            size: Height and width; None for images that have one size.
            channels: 3 for RGB, 1 for gray; None keeps what the images are.
            val_fraction: Fraction of the training images for the test split, if there is none;
                None for 0.2.
            form: Its `value_range` says which values become 0 and 255, in place of 0 to 255 or 0 to
                1. It also says how images are resized.

        Raises:
            InputError: An image or a label cannot be used, images differ in size or channels, a
                data set is random, or there are no test images.
        """
        self._check_fraction(val_fraction)
        names = _class_names(self.train)
        given = {"training": self.train, "test": self.test, "validation": self.validation}
        splits: dict[str, Split] = {}
        deep = False
        for what, part in given.items():
            if part is not None:
                _check_names(names, part, what)
                reader = _Reader(part, what, size, channels, form)
                splits[what] = reader.split()
                deep |= reader.deep
        others = self._read_unlabelled(splits["training"], channels, form)
        train: Samples = splits["training"]
        test: Samples | None = splits.get("test")
        notes = _notes(splits, names, deep)
        if test is None:
            fraction = HELD_OUT if val_fraction is None else val_fraction
            test, train = hold_out(train, fraction)
            notes.append(_held_out_note(len(test), len(train), fraction))
        mean, std = channel_statistics(train.images)
        highest = max(int(split.labels.max()) for split in splits.values())
        return Dataset(
            name=_name(self.train),
            train=train,
            test=test,
            validation=splits.get("validation"),
            classes=names or tuple(str(label) for label in range(highest + 1)),
            mean=mean,
            std=std,
            notes=tuple(notes),
            test_is_held_out=self.test is None,
            unlabelled=others,
        )

    def _read_unlabelled(self, train: Split, channels: int | None, form: PixelForm) -> Split | None:
        """The images without labels, in the size of the others."""
        if self.unlabelled is None:
            return None
        own, height, width = train.sample_shape
        size = height if height == width else None
        return _Reader(self.unlabelled, "unlabelled", size, channels or own, form, False).split()

    def _check_fraction(self, val_fraction: float | None) -> None:
        if self.test is None and val_fraction == 0:
            raise InputError(f"{_name(self.train)} has no test images; {_NEEDS_TEST}")
        if self.validation is not None and val_fraction:
            raise InputError("data has a validation split; drop data.val_fraction")


def as_splits(given: object) -> TorchSplits | None:
    """An object as the training images of a run; None if it is no data set of torch.

    Anything with a length and items counts, apart from text and mappings.

    Raises:
        InputError: It is a loader, or a data set that can only be iterated.
    """
    if isinstance(given, DataLoader):
        raise InputError("data is a DataLoader; give its data set, loader.dataset")
    if isinstance(given, IterableDataset):
        raise InputError(
            f"{_name(given)} can only be iterated; give a data set with a length and items"
        )
    if isinstance(given, str | bytes | Path | Tensor | np.ndarray | dict):
        return None
    return TorchSplits(given) if hasattr(given, "__getitem__") else None


class _Reader:
    """Reads one data set.

    Args:
        given: The data set.
        what: Name of the split.
        size: Height and width; None keeps that of the images.
        channels: See `TorchSplits.read`.
        form: See `TorchSplits.read`.
        labelled: Whether items are pairs of an image and its label.

    Attributes:
        deep: Whether an image had more than 256 levels.
    """

    def __init__(
        self,
        given: Any,
        what: str,
        size: int | None,
        channels: int | None,
        form: PixelForm,
        labelled: bool = True,
    ) -> None:
        self.given, self.what, self.size, self.labelled = given, what, size, labelled
        self.channels, self.form, self.deep = channels, form, False

    def split(self) -> Split:
        """All images and labels.

        Raises:
            InputError: See `TorchSplits.read`.
        """
        count = _length(self.given)
        if count == 0:
            raise InputError(f"the {self.what} images ({_name(self.given)}) are empty; give some")
        log.info("reading the %d %s images of %s", count, self.what, _name(self.given))
        first, _ = self._item(0)
        require_memory(count * first.numel(), f"the {count} {self.what} images")
        images = torch.empty((count, *first.shape), dtype=torch.uint8)
        labels = torch.empty(count, dtype=torch.int64)
        for index in range(count):
            image, labels[index] = self._item(index)
            if image.shape != first.shape:
                raise self._differs(index, image, first)
            images[index] = image
        self._check_repeats(images)
        return Split(images, labels, tuple(map(str, range(count))))

    def _differs(self, index: int, image: Tensor, first: Tensor) -> InputError:
        sizes = [f"{part.shape[2]}x{part.shape[1]}" for part in (image, first)]
        if image.shape[0] != first.shape[0]:
            return InputError(
                f"{self._where(index)} has {image.shape[0]} channels, and the first image "
                f"{first.shape[0]}; set data.channels"
            )
        return InputError(
            f"{self._where(index)} is {sizes[0]}, and the first image {sizes[1]}; give all one "
            "size with data.size"
        )

    def _check_repeats(self, images: Tensor) -> None:
        """Refuses a data set with random transforms, as each image is read only once."""
        step = max(1, len(images) // _READ_TWICE)
        for index in range(0, len(images), step):
            if not torch.equal(self._item(index)[0], images[index]):
                raise InputError(
                    f"{self._where(index)} is another one when it is read again, and each image is "
                    "read only once; drop the random transforms, and use data.flip and "
                    "data.crop_padding"
                )

    def _item(self, index: int) -> tuple[Tensor, int]:
        """An image, uint8 ``[C, H, W]``, and its label."""
        where = self._where(index)
        try:
            item = self.given[index]
        except Exception as error:  # a user's class may raise anything
            raise InputError(f"{where} cannot be read: {first_line(error)}") from error
        if not self.labelled:
            item = (item[0] if isinstance(item, list | tuple) and item else item), NO_LABEL
        elif not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
            raise InputError(f"{where} is {_described(item)}, not a pair (image, label)")
        try:
            image, deep = sample_pixels(item[0], self.size, self.channels, self.form)
            label = _label(item[1]) if self.labelled else NO_LABEL
        except ValueError as error:
            raise InputError(f"{where} {error}") from error
        self.deep |= deep
        return image, label

    def _where(self, index: int) -> str:
        return f"image {index} of the {self.what} images ({_name(self.given)})"


def _length(given: Any) -> int:
    try:
        return len(given)
    except TypeError as error:
        raise InputError(f"{_name(given)} has no length; give a data set that has one") from error


def _label(label: Any) -> int:
    """A label as a number.

    Raises:
        ValueError: It is none; the message is the end of a sentence about the image.
    """
    value = label
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    if not isinstance(value, int | np.integer):
        raise ValueError(
            f"has as label {_described(label)}; give the number of its class, a whole number"
        )
    if not 0 <= value < _MOST_CLASSES:
        raise ValueError(f"has the label {value}; give a number from 0 to {_MOST_CLASSES - 1:,}")
    return int(value)


def _class_names(given: Any) -> tuple[str, ...] | None:
    """The names in ``classes``, also of the data set that a subset or a chain is made of."""
    if isinstance(given, Subset):
        return _class_names(given.dataset)
    if isinstance(given, ConcatDataset):
        first, *others = map(_class_names, given.datasets)
        if any(other != first for other in others):
            raise InputError("the parts of a ConcatDataset have different classes; give the same")
        return first
    found = getattr(given, "classes", None)
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        return None
    names = [str(name) for name in found]
    return distinct_names(names, [str(label) for label in range(len(names))])


def _check_names(names: tuple[str, ...] | None, part: Any, what: str) -> None:
    """Refuses a split whose classes are not those of the training images."""
    own = _class_names(part)
    if own is not None and names is not None and own != names:
        raise InputError(
            f"the {what} images ({_name(part)}) have the classes {brief(list(own))}, the training "
            f"images {brief(list(names))}; labels would mean different classes; give the same"
        )


def _notes(splits: Mapping[str, Split], names: tuple[str, ...] | None, deep: bool) -> list[str]:
    notes = []
    if deep:
        notes.append("some images have more than 256 levels; they are rounded to 8 bits")
    labels = splits["training"].labels
    count = len(names) if names else int(max(part.labels.max() for part in splits.values())) + 1
    if missing := sorted(set(range(count)) - set(labels.tolist())):
        shown = [names[label] if names else label for label in missing]
        notes.append(f"no training image has the class {brief(shown)}; labels count from 0")
    return notes


def _held_out_note(test: int, train: int, fraction: float) -> str:
    return (
        f"there are no test images: {test} of the {test + train} images are held out "
        f"(data.val_fraction={fraction:g}), and the student is tested on them"
    )


def _name(given: object) -> str:
    return type(given).__name__


def _described(value: Any) -> str:
    """A value of any type, for a message."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim > 0:
        return f"a {_name(value)} of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {_name(value)} with the keys {brief(list(value))}"
    if isinstance(value, tuple | list):
        return f"a {_name(value)} of {len(value)}"
    return f"{brief(value)} ({_name(value)})"
