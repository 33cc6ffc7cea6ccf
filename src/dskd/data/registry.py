"""Load a data set by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dskd.data.catalog import DATASETS
from dskd.data.dataset import Dataset
from dskd.data.subset import choose_classes, split_validation, take_fraction
from dskd.errors import InputError, unknown


def load_dataset(
    name: str,
    *,
    root: Path | None = None,
    size: int | None = None,
    classes: int | Sequence[str] | None = None,
    fraction: float = 1.0,
    val_fraction: float = 0.0,
    cache_dir: Path | None = None,
) -> Dataset:
    """Load a data set into memory, or a part of it.

    First the classes are chosen, then the validation split is taken off the training images, then
    a fraction of the rest is selected. None of these choices depends on the training seed.

    Args:
        name: A key of `dskd.data.catalog.DATASETS`.
        root: Folder of the files, which are only read; None downloads published data sets.
        size: Height and width of the images; None keeps the data set's own.
        classes: Number of classes to select from the first on, or names of classes in order; None
            selects all.
        fraction: Fraction of the training images to select, above 0 and at most 1.
        val_fraction: Fraction of the training images for the validation split, at least 0 and
            below 1.
        cache_dir: Folder for downloads and decoded images; None takes ``DSKD_CACHE``, else the
            user's cache folder.

    Returns:
        Splits of uint8 images ``[N, channels, height, width]`` with the mean and standard
        deviation to normalise them by: published constants, or those of the training split
        (digits, folder).

    Raises:
        InputError: An argument or a file cannot be used.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    if size is not None and size < 1:
        raise InputError(f"data.size must be at least 1, got {size}")
    try:
        dataset = DATASETS[name].load_function()(root, size, cache_dir)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error}; check data.root") from error
    return take_part(dataset, classes, fraction, val_fraction)


def take_part(
    dataset: Dataset, classes: int | Sequence[str] | None, fraction: float, val_fraction: float
) -> Dataset:
    """Select classes, split off a validation split, and select a fraction of the rest.

    Args:
        dataset: The whole data set.
        classes: See `load_dataset`.
        fraction: See `load_dataset`.
        val_fraction: See `load_dataset`.

    Raises:
        InputError: A class does not exist, or a fraction leaves a split empty.
    """
    if classes is not None:
        dataset = choose_classes(dataset, classes)
    return take_fraction(split_validation(dataset, val_fraction), fraction)
