"""A split whose images stay in their files and are decoded whenever they are used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dskd.data.dataset import Digest
from dskd.data.image_decoding import decode
from dskd.data.image_source import SomeFiles
from dskd.data.loader import Loader
from dskd.data.path_list import PathList
from dskd.data.pixels import PixelForm
from dskd.data.stream_decoding import BatchDecoder
from dskd.data.stream_loader import StreamLoader
from dskd.runtime.memory import require_memory

HASHED = 64
"""Files whose content counts in `FileSplit.identity`, evenly spread over the split."""


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Labels and files of a split (see `dskd.data.dataset.Samples`).

    Attributes:
        files: The image files.
        labels: int64, ``[N]``.
        sample_shape: Channels, height and width of an image as it is used.
        resized: Whether images are cropped and resized; otherwise each file has that size.
        form: What pixels become.
        workers: Processes that decode batches; 0 decodes them in the process that asks.
    """

    files: SomeFiles
    labels: Tensor
    sample_shape: tuple[int, int, int]
    resized: bool
    form: PixelForm
    workers: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> PathList:
        """Name of the file of each image."""
        return self.files.names

    @property
    def size(self) -> int | None:
        """Height and width that images are resized to; None if they are not."""
        return self.sample_shape[1] if self.resized else None

    @property
    def images(self) -> Tensor:
        """All images at once, uint8 ``[N, channels, height, width]``.

        Raises:
            InputError: They do not fit into memory.
        """
        return self.images_at(torch.arange(len(self)))

    @property
    def decoder(self) -> BatchDecoder:
        """See `dskd.data.stream_loader.StreamedSplit`."""
        return BatchDecoder(self.files, self.sample_shape, self.resized, self.form)

    def images_at(self, indices: Tensor) -> Tensor:
        """See `dskd.data.dataset.Samples.images_at`."""
        needed = len(indices) * int(np.prod(self.sample_shape))
        require_memory(needed, f"{len(indices)} images from {self.files.root}")
        if len(indices) == 0:
            return torch.empty(0, *self.sample_shape, dtype=torch.uint8)
        names = self.names.take(indices.numpy())
        return decode(self.files, names, self.size, self.form)

    def take(self, indices: Tensor) -> FileSplit:
        """See `dskd.data.dataset.Samples.take`."""
        return replace(self, files=self.files.take(indices.numpy()), labels=self.labels[indices])

    def relabelled(self, labels: Tensor) -> FileSplit:
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

        These are the names, sizes and times of change of all files, the content of `HASHED` of
        them, and how images are resized. A file that is replaced by one of the same size and time
        goes unnoticed, unless it is one of those.
        """
        content = hashlib.sha256()
        for index in spread(len(self), HASHED).tolist():
            content.update(self.files.read(self.names[index]))
        return {
            "files": self.files.stamp,
            "content": content.hexdigest(),
            "shape": [len(self), *self.sample_shape],
            "resized": self.resized,
            "form": str(self.form),
        }


def spread(count: int, most: int) -> Tensor:
    """At most ``most`` indices below ``count``, evenly spread.

    Example:
        >>> spread(10, 4).tolist(), spread(3, 4).tolist()
        ([0, 2, 5, 7], [0, 1, 2])
    """
    chosen = min(count, most)
    return torch.arange(chosen) * count // max(chosen, 1)
