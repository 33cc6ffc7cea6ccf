"""Torch's map-style data sets of (image, label) pairs, read into memory once, or streamed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from dskd.data.catalog import Loading
from dskd.data.dataset import Dataset, Samples, Split, channel_statistics, distinct_names
from dskd.data.pixels import RGB, PixelForm, shallow
from dskd.data.sample_pixels import Traits, together
from dskd.data.sample_reader import SampleReader, kept_generators, seed_generators, type_name
from dskd.data.sample_split import READ_TWICE, sample_bytes, stream_samples
from dskd.data.streamed_images import must_stream, statistics_of_some
from dskd.data.subset import HELD_OUT, held_out_note, hold_out
from dskd.errors import InputError, brief
from dskd.runtime.memory import OR_STREAM, require_memory

log = logging.getLogger("dskd")

_FEW = 64
"""So few images always fit into memory."""


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
        test_split: float | None,
        form: PixelForm = RGB,
        loading: Loading = "auto",
        workers: int = 0,
    ) -> Dataset:
        """Reads the labels, and every image once, as uint8, or whenever it is used.

        Images may be those of Pillow, arrays ``[H, W]`` or ``[H, W, C]``, or tensors ``[H, W]`` or
        ``[C, H, W]``, with uint8 from 0 to 255 or floats from 0 to 1. Labels are whole numbers
        from 0. The names of the classes are those of the data set's ``classes``, if it has them.

        Args:
            size: Height and width; None for images that have one size.
            channels: 3 for RGB, 1 for gray; None keeps what the images are.
            test_split: Fraction of the training images for a missing test split; None for 0.2.
            form: Its `value_range` says which values become 0 and 255, in place of 0 to 255 or 0 to
                1. It also says how images are resized.
            loading: See `dskd.data.read_options.ImageOptions`.
            workers: Processes that read streamed images; 0 reads them in this one.

        Raises:
            InputError: An image or a label cannot be used, images differ in size or channels, a
                data set is random, or ``test_split`` is set and there are test images.
        """
        if self.test is not None and test_split:
            raise InputError("data has a test split of its own; drop data.test_split")
        names = _class_names(self.train)
        readers = self._readers(size, channels, form)
        for what, reader in readers.items():
            _check_names(names, reader.given, what)
        streamed = self._why_streamed(readers, loading, workers)
        read = partial(_split, workers=workers if streamed else None)
        found = {what: read(reader) for what, reader in readers.items()}
        for reader in self._unlabelled_readers(found["training"][0], channels, form):
            found[reader.what] = read(reader)
        splits = {what: split for what, (split, _) in found.items()}
        train, test = splits["training"], splits.get("test")
        notes = [streamed] * bool(streamed) + _trait_notes(found.values()) + _notes(splits, names)
        if test is None:
            test, train, note = _held_out(train, test_split or HELD_OUT)
            notes.append(note)
        mean, std = statistics_of_some(train) if streamed else channel_statistics(train.images)
        return Dataset(
            name=type_name(self.train),
            train=train,
            test=test,
            validation=splits.get("validation"),
            classes=names or tuple(map(str, range(_highest(splits) + 1))),
            mean=mean,
            std=std,
            notes=tuple(notes),
            test_is_held_out=self.test is None,
            unlabelled=splits.get("unlabelled"),
            names_are_files=False,
        )

    def _readers(
        self, size: int | None, channels: int | None, form: PixelForm
    ) -> dict[str, SampleReader]:
        """Of the splits with labels, by name."""
        given = {"training": self.train, "test": self.test, "validation": self.validation}
        return {
            what: SampleReader(part, what, size, channels, form)
            for what, part in given.items()
            if part is not None
        }

    def _why_streamed(
        self, readers: Mapping[str, SampleReader], loading: Loading, workers: int
    ) -> str:
        """See `dskd.data.streamed_images.must_stream`."""
        count = sum(map(len, readers.values()))
        first = readers["training"]
        if self.unlabelled is not None:
            count += len(replace(first, given=self.unlabelled, what="unlabelled"))
        return must_stream(count, loading, workers, lambda: _bytes(first, count, workers))

    def _unlabelled_readers(
        self, train: Samples, channels: int | None, form: PixelForm
    ) -> list[SampleReader]:
        """Of the images without labels, if there are any, in the size of the others."""
        if self.unlabelled is None:
            return []
        own, height, width = train.sample_shape
        size = height if height == width else None
        return [SampleReader(self.unlabelled, "unlabelled", size, channels or own, form, False)]


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
            f"{type_name(given)} can only be iterated; give a data set with a length and items"
        )
    if isinstance(given, str | bytes | Path | Tensor | np.ndarray | dict):
        return None
    return TorchSplits(given) if hasattr(given, "__getitem__") else None


def _split(reader: SampleReader, workers: int | None) -> tuple[Samples, Traits]:
    """The split of a data set, in memory if ``workers`` is None, and the traits of its images."""
    if workers is not None:
        return stream_samples(reader, workers)
    name = type_name(reader.given)
    log.info("reading the %d %s images of %s", len(reader), reader.what, name)
    return _in_memory(reader)


def _bytes(reader: SampleReader, count: int, workers: int) -> int:
    """Bytes of an image as it is used, at most; the first one is read only if that may matter."""
    if reader.size is not None:
        return (reader.channels or 3) * reader.size**2
    if count <= _FEW:
        return 0
    return sample_bytes(reader, workers if sys.platform == "linux" else 0)


@kept_generators()
def _in_memory(reader: SampleReader) -> tuple[Split, Traits]:
    """All images and labels, read once, and the traits of the images.

    As for streamed images, the random generators have the same state before each sample is read.

    Raises:
        InputError: See `TorchSplits.read`.
    """
    count = len(reader)
    seed_generators(0)
    first, _, traits = reader.read(0)
    require_memory(count * first.numel(), f"the {count} {reader.what} images", OR_STREAM)
    images = torch.empty((count, *first.shape), dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for index in range(count):
        seed_generators(index)
        image, labels[index], own = reader.read(index)
        if image.shape != first.shape:
            raise reader.differs(index, image.shape, first.shape)
        images[index] = image
        traits = together((traits, own))
    step = max(1, count // READ_TWICE)
    for index in range(0, count, step):
        seed_generators(index + count)  # a random data set gives another image then
        if not torch.equal(reader.read(index)[0], images[index]):
            raise reader.is_random(index)
    return Split(images, labels, tuple(map(str, range(count)))), traits


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
            f"the {what} images ({type_name(part)}) have the classes {brief(list(own))}, the "
            f"training images {brief(list(names))}; labels would mean different classes; give the "
            "same"
        )


def _trait_notes(found: Iterable[tuple[Samples, Traits]]) -> list[str]:
    """Notes on images of 16 bits, and on those that are turned.

    Raises:
        InputError: All images of 16 bits would be black.
    """
    traits = together(own for _, own in found)
    if 0 < traits.depth < 256:
        raise InputError(
            f"images of Pillow's modes I and I;16 have no value above {traits.depth} of 65535 and "
            "would become black; give uint8 (mode L), or set data.value_range=[0,255]"
        )
    notes = []
    if traits.depth:
        many = "some images have more than 256 levels; they are rounded to 8 bits"
        notes += shallow(traits.depth) or [many]
    if traits.turned:
        notes.append(
            "some images are turned by their EXIF orientation; if the data set has turned them "
            "itself, let it use PIL.ImageOps.exif_transpose, which removes that tag"
        )
    return notes


def _notes(splits: Mapping[str, Samples], names: tuple[str, ...] | None) -> list[str]:
    notes = []
    labels = splits["training"].labels
    count = len(names) if names else _highest(splits) + 1
    if missing := sorted(set(range(count)) - set(labels.tolist())):
        shown = [names[label] if names else label for label in missing]
        notes.append(f"no training image has the class {brief(shown)}; labels count from 0")
    return notes


def _highest(splits: Mapping[str, Samples]) -> int:
    return max(int(split.labels.max()) for split in splits.values())


def _held_out(images: Samples, fraction: float) -> tuple[Samples, Samples, str]:
    """The test images, the training images, and a note."""
    test, train = hold_out(images, "test_split", fraction)
    return test, train, held_out_note("there are no test images", test, train, fraction)
