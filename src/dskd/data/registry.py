"""Load a data set by its name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dskd.data.catalog import DATASETS, SOURCE_SETTINGS
from dskd.data.dataset import Dataset
from dskd.data.read_options import ImageOptions, read_options
from dskd.data.subset import choose_classes, split_validation, take_fraction, take_test_fraction
from dskd.errors import InputError, unknown
from dskd.storage.paths import as_path

if TYPE_CHECKING:
    from typing_extensions import Unpack


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    classes: int | Sequence[str] | None = None,
    fraction: float = 1.0,
    val_fraction: float | None = None,
    test_split: float | None = None,
    test_fraction: float = 1.0,
    cache_dir: str | Path | None = None,
    **images: Unpack[ImageOptions],
) -> Dataset:
    """Load a data set, or a part of it.

    First the classes are chosen, then the validation split is taken off the training images, then
    fractions of the splits are selected. None of these choices depends on the training seed.

    Args:
        name: A key of `dskd.data.catalog.DATASETS`.
        root: Folder of the files, which are only read; None downloads published data sets.
        size: Height and width of the images; None keeps the data set's own.
        classes: Number of the first classes to select, or names in order; None selects all.
        fraction: Fraction of the training images to select, above 0 and at most 1.
        val_fraction: Fraction of the training images for the validation split. None means 0.
        test_split: Fraction of the training images for the test split, if your own images have
            none. None means 0.2.
        test_fraction: Fraction of the test and validation images to select, as ``fraction``.
        cache_dir: Folder for downloads and decoded images; None takes ``DSKD_CACHE``, else the
            user's cache folder.
        **images: How image files are read, for your own images: see `ImageOptions`.

    Returns:
        Splits of uint8 images ``[N, channels, height, width]`` with the mean and standard
        deviation to normalise them by: published constants, or those of the training split
        (digits, your own images).

    Raises:
        InputError: An argument or a file cannot be used.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    options = replace(read_options(size, test_split, **images), val_fraction=val_fraction or 0.0)
    entry = DATASETS[name]
    for key in SOURCE_SETTINGS:
        if images.get(key) is not None and key not in entry.settings:
            raise InputError(f"data.{key} does nothing for {name}; drop it")
    if not entry.own_images:
        _refuse_image_options(name, images)
        if test_split is not None:
            raise InputError(f"{name} has a test split of its own; drop data.test_split")
    folder = as_path(root, "data.root") if root is not None else None
    cache = as_path(cache_dir, "data.cache_dir") if cache_dir is not None else None
    try:
        dataset = entry.load_function()(folder, options, cache)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error}; check data.root") from error
    return take_part(dataset, classes, fraction, val_fraction or 0.0, test_fraction)


def _refuse_image_options(name: str, images: ImageOptions) -> None:
    """Refuses options of image files for a data set that has none."""
    defaults = inspect.signature(read_options).parameters
    changed = {key for key, value in images.items() if value != defaults[key].default}
    changed -= {"interpolation"}  # which random crops use
    if changed - {"loading"} or images.get("loading") == "stream":
        raise InputError(
            "data.channels, value_range, max_pixels, skip_bad, crop_pct, workers and "
            f"loading=stream are for your own images, and {name} has a fixed format; drop them"
        )


def take_part(
    dataset: Dataset,
    classes: int | Sequence[str] | None,
    fraction: float,
    val_fraction: float,
    test_fraction: float = 1.0,
) -> Dataset:
    """Select classes, split off a validation split, and select fractions of the splits.

    Args:
        dataset: The whole data set.
        classes: See `load_dataset`.
        fraction: See `load_dataset`.
        val_fraction: See `load_dataset`.
        test_fraction: See `load_dataset`.

    Raises:
        InputError: A class does not exist, or a fraction leaves a split empty.
    """
    if classes is not None:
        dataset = choose_classes(dataset, classes)
    dataset = split_validation(dataset, val_fraction)
    return take_test_fraction(take_fraction(dataset, fraction), test_fraction)
