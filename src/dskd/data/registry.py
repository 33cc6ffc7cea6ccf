"""Loading a data set by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from dskd.data import cifar, digits, image_folder, tiny_imagenet
from dskd.data.dataset import Dataset
from dskd.data.subset import choose_classes, split_validation, take_fraction
from dskd.errors import InputError, unknown

_Loader = Callable[[Path | None, int | None, Path | None], Dataset]


def _digits(root: Path | None, size: int | None, cache_dir: Path | None) -> Dataset:
    if root is not None:
        raise InputError("data.root is not used by 'digits', which come with scikit-learn; drop it")
    return digits.load(size)


_LOADERS: Mapping[str, tuple[str, _Loader]] = {
    "digits": ("handwritten digits, 8x8 gray, 10 classes, no download", _digits),
    "cifar10": (
        "CIFAR-10, 32x32, 10 classes",
        lambda root, size, cache_dir: cifar.load(cifar.CIFAR10, root, size, cache_dir),
    ),
    "cifar100": (
        "CIFAR-100, 32x32, 100 classes",
        lambda root, size, cache_dir: cifar.load(cifar.CIFAR100, root, size, cache_dir),
    ),
    "tiny_imagenet": ("Tiny ImageNet, 64x64, 200 classes", tiny_imagenet.load),
    "folder": ("your images, in ROOT/train/CLASS and ROOT/val/CLASS", image_folder.load),
}

DATASETS: Mapping[str, str] = MappingProxyType({name: text for name, (text, _) in _LOADERS.items()})
"""What each data set is, by name."""


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
    """Load a data set, decoded and whole, and take the part of it that is asked for.

    The classes are chosen first, then the validation part is held out, then a share of the rest is
    kept, each the same for every training seed.

    Args:
        name: One of `DATASETS`.
        root: Where the files lie; None downloads published sets. Only ever read.
        size: Height and width of the images; None leaves the data set's own.
        classes: How many of the first classes, or the names of those to take, in order; None
            takes all.
        fraction: The part of the training images to keep, above 0, at most 1.
        val_fraction: The part of the training images to hold out for validation, below 1.
        cache_dir: Where downloads and decoded images are kept; None takes ``DSKD_CACHE``, else the
            user's cache folder.

    Returns:
        Images uint8 ``[N, channels, height, width]`` in each split, and how to standardise them:
        published constants, or computed from the whole training split (digits, folder).

    Raises:
        InputError: Whatever cannot be used, with where it is and how to fix it.
    """
    if name not in _LOADERS:
        raise unknown("data set", name, DATASETS)
    if size is not None and size < 1:
        raise InputError(f"data.size must be at least 1, got {size}")
    try:
        dataset = _LOADERS[name][1](root, size, cache_dir)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error}; check data.root") from error
    return take_part(dataset, classes, fraction, val_fraction)


def take_part(
    dataset: Dataset, classes: int | Sequence[str] | None, fraction: float, val_fraction: float
) -> Dataset:
    """Some classes of a data set, a validation part held out, a share of the rest.

    Args:
        dataset: All of it.
        classes: See `load_dataset`.
        fraction: See `load_dataset`.
        val_fraction: See `load_dataset`.

    Raises:
        InputError: A class does not exist, or a share leaves a split empty.
    """
    if classes is not None:
        dataset = choose_classes(dataset, classes)
    return take_fraction(split_validation(dataset, val_fraction), fraction)
