"""Data sets: uint8 images, integer labels, class names."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dskd.data.loader import NO_LABEL, Loader, MemoryLoader
from dskd.errors import InputError
from dskd.storage.metric_names import Metric


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Adds bytes."""


class Samples(Protocol):
    """The images and labels of a split, wherever they are.

    `Split` holds its images in memory, `dskd.data.file_split.FileSplit` reads them from files, and
    `dskd.data.sample_split.SampleSplit` from a data set of torch.

    Attributes:
        labels: int64, ``[N]``, from 0 to K - 1.
        names: Name of the file of each image, or of its row (see `Dataset.names_are_files`); empty
            if the images have no names.
        images: All images, uint8, ``[N, channels, height, width]``.
        sample_shape: Channels, height and width of an image.
    """

    @property
    def labels(self) -> Tensor: ...  # noqa: D102 (see the attributes)
    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def images(self) -> Tensor: ...  # noqa: D102
    @property
    def sample_shape(self) -> tuple[int, int, int]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def images_at(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (int64), as they are evaluated."""

    def take(self, indices: Tensor) -> Samples:
        """The part at ``indices`` (int64), in that order."""

    def relabelled(self, labels: Tensor) -> Samples:
        """The same images with other labels."""

    def loader(self, device: torch.device) -> Loader:
        """A loader of batches on a device."""

    def add_to(self, digest: Digest) -> None:
        """Adds to a hash what tells these images and labels from others."""


@dataclass(frozen=True)
class Split:
    """Images and their labels in memory.

    Attributes:
        images: uint8, ``[N, channels, height, width]``.
        labels: int64, ``[N]``, from 0 to K - 1.
        names: See `Samples`.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise InputError(
                "images must be a uint8 tensor [N, channels, height, width], "
                f"got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise InputError(
                f"labels must be an int64 tensor [{len(self.images)}], "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )

    @classmethod
    def unlabelled(cls, images: Tensor) -> Split:
        """Images without labels.

        Args:
            images: uint8, ``[N, channels, height, width]``.

        Example:
            >>> Split.unlabelled(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).labels
            tensor([-1, -1])
        """
        return cls(images, torch.full((len(images),), NO_LABEL))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """See `Samples`."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def images_at(self, indices: Tensor) -> Tensor:
        """See `Samples.images_at`."""
        return self.images[indices]

    def take(self, indices: Tensor) -> Split:
        """See `Samples.take`."""
        names = tuple(self.names[index] for index in indices.tolist()) if self.names else ()
        return Split(self.images[indices], self.labels[indices], names)

    def relabelled(self, labels: Tensor) -> Split:
        """See `Samples.relabelled`."""
        return replace(self, labels=labels)

    def loader(self, device: torch.device) -> Loader:
        """See `Samples.loader`."""
        return MemoryLoader(self, device)

    def add_to(self, digest: Digest) -> None:
        """See `Samples.add_to`. All pixels count."""
        for part in (self.images, self.labels):
            digest.update(part.cpu().contiguous().numpy().data)


@dataclass(frozen=True)
class Dataset:
    """The splits of a data set, its class names and its channel statistics.

    Attributes:
        name: Name in the recipe, such as ``"cifar100"``.
        train: Training split.
        test: Test split, on which the accuracy is reported.
        classes: Name of each class, by label; empty if no image has a label.
        mean: Mean of each channel, on the scale from 0 to 1.
        std: Standard deviation of each channel, on the scale from 0 to 1.
        validation: Validation split, a folder of its own or taken off the training images by
            ``data.val_fraction``; None without one.
        notes: Lines that tell the user about oddities of the files.
        ids: A second name of each class, by label, such as its WordNet id; may be empty.
        skipped: Names of image files that were left out, each with the reason.
        unlabelled: Images without labels, which join the training; None without any.
        without_labels: Whether no image has a label. The classes are those of the teacher then, and
            the labels of the test and validation images are what it predicts for them, or
            `NO_LABEL` before it does.
        test_is_held_out: Whether ``data.test_split`` took the test split off the training images,
            because there was no other.
        names_are_files: Whether the names of the images are paths of files, and not numbers of
            rows.
    """

    name: str
    train: Samples
    test: Samples
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: Samples | None = None
    notes: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    test_is_held_out: bool = False
    unlabelled: Samples | None = None
    without_labels: bool = False
    names_are_files: bool = True

    def __post_init__(self) -> None:
        for where, split in self.splits().items():
            if len(split) == 0:
                raise InputError(f"{self.name}: the {where} split is empty; it needs images")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low == high == NO_LABEL and (self.without_labels or not self.classes):
                continue
            if low < 0 or high >= len(self.classes):
                raise InputError(
                    f"{self.name}: labels out of range in the {where} split: {low} to {high}, "
                    f"but there are {len(self.classes)} classes (0 to {len(self.classes) - 1})"
                )
            if split.sample_shape != self.train.sample_shape:
                raise InputError(
                    f"{self.name}: {where} images are {list(split.sample_shape)}, "
                    f"training images {list(self.train.sample_shape)}; "
                    "give all one size with data.size"
                )
        self._check_unlabelled()

    def _check_unlabelled(self) -> None:
        others = self.unlabelled
        if others is None:
            return
        if len(others) == 0:
            raise InputError(f"{self.name}: there are no images without labels; give some")
        if others.sample_shape != self.train.sample_shape:
            raise InputError(
                f"{self.name}: the images without labels are {list(others.sample_shape)}, the "
                f"training images {list(self.train.sample_shape)}; give them that size"
            )
        if bool((others.labels != NO_LABEL).any()):
            raise InputError(
                f"{self.name}: an image without a label has the label {NO_LABEL}; make the split "
                "with Split.unlabelled(images)"
            )

    def splits(self) -> dict[str, Samples]:
        """The splits that exist, by name."""
        splits: dict[str, Samples] = {"training": self.train, "test": self.test}
        if self.validation is not None:
            splits["validation"] = self.validation
        return splits

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.train.sample_shape

    @property
    def metric(self) -> Metric:
        """What accuracy on this data is: without labels, agreement with the teacher."""
        return "agreement" if self.without_labels else "accuracy"

    def fingerprint(self) -> str:
        """A hash of all images and labels: equal for equal data only (see `Samples.add_to`).

        The predictions of a teacher are no part of the data.
        """
        digest = hashlib.sha256()
        splits = self.splits()
        if self.unlabelled is not None:
            splits["unlabelled"] = self.unlabelled
        for where, split in splits.items():
            digest.update(f"{where} {[len(split), *split.sample_shape]}".encode())
            if self.without_labels:
                split = split.relabelled(torch.full_like(split.labels, NO_LABEL))
            split.add_to(digest)
        return digest.hexdigest()


def channel_statistics(*images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on the scale from 0 to 1.

    Args:
        images: uint8, ``[N, channels, height, width]``; one tensor or several.

    Returns:
        The means and the standard deviations, one number for each channel.
    """
    means, stds = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images[0].shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for part in images:
            counts += torch.bincount(part[:, channel].flatten(), minlength=256)
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        stds.append(max(variance, 1e-6) ** 0.5)
    return tuple(means), tuple(stds)


def distinct_names(names: Sequence[str], tags: Sequence[str]) -> tuple[str, ...]:
    """Make class names distinct: append the tag to every name that occurs more than once.

    Args:
        names: The name of each class.
        tags: A tag for each class, all different.

    Example:
        >>> distinct_names(["crane", "ox", "crane"], ["n01", "n02", "n03"])
        ('crane (n01)', 'ox', 'crane (n03)')
    """
    counts = Counter(names)
    return tuple(
        f"{name} ({tag})" if counts[name] > 1 else name
        for name, tag in zip(names, tags, strict=True)
    )
