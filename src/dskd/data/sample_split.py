"""A split whose samples a map-style data set makes whenever they are used."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dskd.data.augmentation import Augmentation
from dskd.data.dataset import Digest
from dskd.data.file_split import HASHED, spread
from dskd.data.loader import Loader
from dskd.data.sample_pixels import DAMAGED, Traits, reopened, sample_pixels
from dskd.data.sample_reader import MOST_CLASSES, SampleReader, kept_generators, seed_generators
from dskd.data.stream_decoding import Decoder, Job, decode_for_crop
from dskd.data.stream_loader import StreamLoader, in_workers
from dskd.data.transforms import draw_box, resize
from dskd.errors import InputError
from dskd.runtime.memory import require_memory

log = logging.getLogger("dskd")

READ_TWICE = 16
"""Samples that are read twice, to see whether the data set gives the same image again."""
_PIECE = 64
"""Samples that a worker reads at a time when no step asks for them."""
_FACTS = ("label", "channels", "height", "width", *Traits._fields)


class RowNames(Sequence[str]):
    """The names of samples: their numbers in the data set.

    Args:
        rows: int64 ``[N]``, the numbers.
    """

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> RowNames: ...
    def __getitem__(self, index: int | slice) -> str | RowNames:
        if isinstance(index, slice):
            return RowNames(self._rows[index])
        return str(self._rows[index])


@dataclass(frozen=True)
class SampleDecoder(Decoder):
    """Makes the images of batches from the samples of a data set.

    The random generators have the same state before each sample is read, wherever it is read. So
    what a data set draws from them does not change the images.

    Attributes:
        reader: The data set.
        shape: See `Decoder`.
        rows: int64 ``[N]``, the number of each image in the data set.
        labels: int64 ``[N]``, the label that each of them had at first.
    """

    reader: SampleReader
    shape: tuple[int, int, int]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __call__(self, job: Job) -> Tensor:
        """See `Decoder`."""
        with kept_generators():
            return super().__call__(job)

    def whole(self, index: int) -> Tensor:
        """See `Decoder.whole`."""
        row = int(self.rows[index])
        seed_generators(row)
        image, label, _ = self.reader.read(row)
        self._check(index, label, image)
        return image

    def random_crop(self, index: int, seed: int, augmentation: Augmentation) -> Tensor:
        """See `Decoder.random_crop`."""
        row = int(self.rows[index])
        seed_generators(row)
        given, label = self.reader.item(row)
        form = replace(self.reader.form, channels=self.shape[0])
        try:
            if isinstance(given, Image.Image):
                image, box = decode_for_crop(reopened(given), self.shape, form, seed, augmentation)
            else:
                image, _ = sample_pixels(given, None, self.reader.channels, self.reader.form)
                box = draw_box(seed, image.shape[1], image.shape[2], augmentation)
        except DAMAGED as error:
            raise InputError(f"{self.reader.where(row)} cannot be used: {error}") from error
        found = resize(image, box, self.shape[1:], augmentation)
        self._check(index, label, found)
        return found

    def _check(self, index: int, label: int, image: Tensor) -> None:
        """Refuses a sample that is another one than at the beginning of the run."""
        row = int(self.rows[index])
        if label != self.labels[index]:
            raise InputError(
                f"{self.reader.where(row)} has the label {label}, and {self.labels[index]} when "
                "labels were read, or in the data set's targets; give each image one label"
            )
        if image.shape != self.shape:
            raise self.reader.differs(row, image.shape, self.shape)


@dataclass(frozen=True)
class _FactsReader:
    """Reads samples only to see what they are. The result of a job is int64 ``[B, 6]``, `_FACTS`.

    Attributes:
        reader: The data set.
        twice: Whether samples are read twice, to find those that are random.
    """

    reader: SampleReader
    twice: bool

    def __call__(self, job: Job) -> Tensor:
        with kept_generators():
            found = [self._facts(row) for row in job.indices.tolist()]
        return torch.tensor(found, dtype=torch.int64)

    def _facts(self, row: int) -> tuple[int, ...]:
        seed_generators(row)
        image, label, traits = self.reader.read(row)
        if self.twice:
            seed_generators(row + len(self.reader))
            if not torch.equal(image, self.reader.read(row)[0]):
                raise self.reader.is_random(row)
        return label, *image.shape, *traits


@dataclass(frozen=True, eq=False)
class SampleSplit:
    """Labels of a split, and the data set that makes its images (`dskd.data.dataset.Samples`).

    Attributes:
        decoder: Makes the images.
        labels: int64, ``[N]``.
        workers: Processes that make batches; 0 makes them in the process that asks. With worker
            processes, no other process reads a sample, because files that a data set opens must not
            be shared.
    """

    decoder: SampleDecoder
    labels: Tensor
    workers: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as it is used."""
        return self.decoder.shape

    @property
    def names(self) -> RowNames:
        """The number of each image in its data set."""
        return RowNames(self.decoder.rows)

    @property
    def images(self) -> Tensor:
        """All images at once, uint8 ``[N, channels, height, width]``.

        Raises:
            InputError: They do not fit into memory.
        """
        return self.images_at(torch.arange(len(self)))

    def images_at(self, indices: Tensor) -> Tensor:
        """See `dskd.data.dataset.Samples.images_at`."""
        needed = len(indices) * int(np.prod(self.sample_shape))
        require_memory(needed, f"{len(indices)} of the {self.decoder.reader.what} images")
        if len(indices) == 0:
            return torch.empty(0, *self.sample_shape, dtype=torch.uint8)
        return torch.cat([*in_workers(self.decoder, _jobs(indices), self.workers)])

    def take(self, indices: Tensor) -> SampleSplit:
        """See `dskd.data.dataset.Samples.take`."""
        chosen, old = indices.numpy(), self.decoder
        decoder = replace(old, rows=old.rows[chosen], labels=old.labels[chosen])
        return replace(self, decoder=decoder, labels=self.labels[indices])

    def relabelled(self, labels: Tensor) -> SampleSplit:
        """See `dskd.data.dataset.Samples.relabelled`."""
        return replace(self, labels=labels)

    def loader(self, device: torch.device) -> Loader:
        """See `dskd.data.dataset.Samples.loader`."""
        return StreamLoader(self, device)

    def add_to(self, digest: Digest) -> None:
        """See `dskd.data.dataset.Samples.add_to`.

        Pixels do not count, because a million images cannot be hashed before every run. What counts
        is listed at `identity`, and the labels.
        """
        digest.update(repr(self.identity()).encode())
        digest.update(self.labels.numpy().data)

    def identity(self) -> dict[str, Any]:
        """Plain values that differ if the images differ.

        These are the pixels of `HASHED` images, evenly spread, the numbers of all images in the
        data set, and how images are resized. Other images that are replaced go unnoticed.
        """
        content = hashlib.sha256()
        for part in torch.split(spread(len(self), HASHED), _PIECE):
            content.update(self.images_at(part).contiguous().numpy().data)
        reader = self.decoder.reader
        return {
            "rows": hashlib.sha256(self.decoder.rows.data).hexdigest(),
            "content": content.hexdigest(),
            "shape": [len(self), *self.sample_shape],
            "size": reader.size,
            "form": str(reader.form),
        }


def stream_samples(reader: SampleReader, workers: int) -> tuple[SampleSplit, Traits]:
    """A split that reads samples whenever they are used.

    The labels are those that the data set lists, if it lists any (see
    `SampleReader.known_labels`). Otherwise all samples are read once.

    Args:
        reader: The data set.
        workers: See `SampleSplit`.

    Returns:
        The split, and what the user should know of the images that were read.

    Raises:
        InputError: A sample cannot be used, or is random.
    """
    count = len(reader)
    few = spread(count, READ_TWICE)
    facts = _facts(reader, few, workers, twice=True)
    labels = reader.known_labels()
    if labels is None or labels[few.numpy()].tolist() != facts["label"].tolist():
        log.info("reading the labels of the %d %s images", count, reader.what)
        facts = _facts(reader, torch.arange(count), workers, twice=False)
        labels = facts["label"].numpy()
    _check_range(reader, labels)
    shapes = torch.stack([facts[name] for name in _FACTS[1:4]], dim=1)
    rows = few.tolist() if len(shapes) == len(few) else range(count)
    channels, height, width = first = tuple(shapes[0].tolist())
    for row, shape in zip(rows, shapes.tolist(), strict=True):
        if tuple(shape) != first:
            raise reader.differs(row, shape, first)
    decoder = SampleDecoder(reader, (channels, height, width), np.arange(count), labels)
    traits = Traits(int(facts["depth"].max()), bool(facts["turned"].any()))
    return SampleSplit(decoder, torch.from_numpy(labels), workers), traits


def sample_bytes(reader: SampleReader, workers: int) -> int:
    """Bytes of the first image as it is used."""
    facts = _facts(reader, torch.zeros(1, dtype=torch.int64), workers, twice=False)
    return int(torch.stack([facts[name] for name in _FACTS[1:4]]).prod())


def _facts(reader: SampleReader, rows: Tensor, workers: int, *, twice: bool) -> dict[str, Tensor]:
    """What is known of some samples: int64 ``[N]`` by the names in `_FACTS`."""
    found = torch.cat([*in_workers(_FactsReader(reader, twice), _jobs(rows), workers)])
    return {name: column.clone() for name, column in zip(_FACTS, found.unbind(1), strict=True)}


def _jobs(indices: Tensor) -> list[Job]:
    return [Job(part.numpy()) for part in torch.split(indices, _PIECE)]


def _check_range(reader: SampleReader, labels: NDArray[np.int64]) -> None:
    """Refuses listed labels that are no classes."""
    bad = np.flatnonzero((labels < 0) | (labels >= MOST_CLASSES))
    if reader.labelled and bad.size:
        raise reader.bad_label(int(bad[0]), int(labels[bad[0]]))
