"""CIFAR-10 and CIFAR-100, read from the published files for Python.

Source: Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images, technical report,
University of Toronto; https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dskd.data.archives import Files, TarFiles, existing_path
from dskd.data.cache import cached
from dskd.data.dataset import Dataset, Split, distinct_names
from dskd.data.download import download
from dskd.data.folder_files import FolderFiles
from dskd.data.image_decoding import resize
from dskd.data.read_options import ReadOptions
from dskd.data.restricted_pickle import read_pickle
from dskd.errors import InputError
from dskd.runtime.memory import require_memory

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Published:
    """How a CIFAR data set is published.

    Attributes:
        name: Name in the catalog.
        url: Address of the archive.
        md5: md5 of the archive.
        folder: Folder within the archive.
        train: Names of the training files.
        test: Name of the test file.
        meta: Name of the file with the class names.
        labels: Key of the labels.
        names: Key of the class names.
        md5s: md5 of each file.
        mean: Mean of each channel of the training images, on the scale from 0 to 1.
        std: Standard deviation of each channel, on the scale from 0 to 1.
    """

    name: str
    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str
    md5s: Mapping[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def archive(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[1]


CIFAR10 = Published(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{part}" for part in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    labels="labels",
    names="label_names",
    md5s={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = Published(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    meta="meta",
    labels="fine_labels",
    names="fine_label_names",
    md5s={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
)


def load_cifar10(root: Path | None, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """Load CIFAR-10; see `load`."""
    return load(CIFAR10, root, options, cache_dir)


def load_cifar100(root: Path | None, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """Load CIFAR-100; see `load`."""
    return load(CIFAR100, root, options, cache_dir)


def load(
    published: Published, root: Path | None, options: ReadOptions, cache_dir: Path | None
) -> Dataset:
    """Load CIFAR-10, CIFAR-100, or other images in files of the same format.

    Args:
        published: `CIFAR10` or `CIFAR100`.
        root: The published folder or archive, or the folder that contains it; it is only read.
            None downloads the archive into the cache folder.
        options: Its size is the height and width to resize to, see `dskd.data.pixels.square`; None
            keeps 32.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`.

    Returns:
        Images ``[N, 3, size, size]``. The class names determine the number of classes. The notes
        name files that differ from the published ones.

    Raises:
        InputError: A file is missing, damaged, malicious or has another format.
    """
    files, size = _find(published, root, cache_dir), options.size
    return cached(published.name, files, size, cache_dir, lambda: _build(published, files, size))


def _find(published: Published, root: Path | None, cache_dir: Path | None) -> Files:
    """The published files in a folder or an archive."""
    wanted = published.md5s.keys()
    top = published.folder + "/"
    if root is None:
        return TarFiles(download(published.url, published.md5, cache_dir), top, wanted)
    path = existing_path(root)
    if path.is_file():
        return TarFiles(path, top, wanted)
    for folder in (path / published.folder, path):
        if any((folder / name).is_file() for name in wanted):
            return FolderFiles(folder, wanted)
    if (path / published.archive).is_file():
        return TarFiles(path / published.archive, top, wanted)
    raise InputError(
        f"{path} holds neither {published.folder}/ nor {published.archive}; "
        f"set data.root to the folder that does, or leave it out to download {published.name}"
    )


def _build(published: Published, files: Files, size: int | None) -> Dataset:
    changed: list[str] = []

    def entries(file: str) -> dict[str, object]:
        data = files.read(file)
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != published.md5s[file]:
            changed.append(file)
        return read_pickle(data, files.where(file))

    classes = _class_names(entries(published.meta), published.names, files.where(published.meta))
    split = [
        _images(entries(file), published.labels, len(classes), files.where(file))
        for file in (*published.train, published.test)
    ]
    note = f"{', '.join(changed)} in {files.root} differ from the published files (md5)"
    return Dataset(
        name=published.name,
        train=_join(split[:-1], size),
        test=_join(split[-1:], size),
        classes=classes,
        mean=published.mean,
        std=published.std,
        notes=(note,) if changed else (),
    )


def _class_names(entries: Mapping[str, object], key: str, where: str) -> tuple[str, ...]:
    names = _entry(entries, key, where)
    if not isinstance(names, list) or not all(
        isinstance(name, bytes | str) and len(name) <= _LONGEST_NAME for name in names
    ):
        raise InputError(
            f"{where}: {key!r} must be a list of class names of {_LONGEST_NAME} letters at most; "
            "fetch the file again"
        )
    texts = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
    return distinct_names(texts, [str(label) for label in range(len(texts))])


def _images(
    entries: Mapping[str, object], key: str, classes: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images, uint8 ``[N, 3, 32, 32]``, and labels, ``[N]``, of one file."""
    data = _entry(entries, "data", where)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
        raise InputError(f"{where}: 'data' must be an array of uint8; fetch the file again")
    if data.ndim != 2 or data.shape[1] != _PIXELS:
        raise InputError(
            f"{where}: 'data' must be [N, {_PIXELS}], got {list(data.shape)}; fetch the file again"
        )
    labels = _labels(_entry(entries, key, where), key, where)
    if len(labels) != len(data):
        raise InputError(
            f"{where}: {len(data)} images but {len(labels)} labels; fetch the file again"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"{where}: labels go from {labels.min()} to {labels.max()}, but there are {classes} "
            f"class names (0 to {classes - 1}); use files that belong together"
        )
    return data.reshape(-1, 3, _SIDE, _SIDE), labels


def _labels(value: object, key: str, where: str) -> NDArray[np.int64]:
    """Labels, ``[N]``, from a list of numbers or an array."""
    numbers: NDArray[Any] | None = None
    if isinstance(value, np.ndarray):
        numbers = value
    elif isinstance(value, list) and all(type(label) is int for label in value):
        small = all(abs(label) < 2**31 for label in value)
        numbers = np.array(value, np.int64) if small else None
    if numbers is None or numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise InputError(f"{where}: {key!r} must be a list of small whole numbers; fetch it again")
    return numbers.astype(np.int64)


def _entry(entries: Mapping[str, object], key: str, where: str) -> object:
    if key not in entries:
        raise InputError(f"{where} has no entry {key!r}; fetch the published file")
    return entries[key]


def _join(parts: list[tuple[NDArray[np.uint8], NDArray[np.int64]]], size: int | None) -> Split:
    """Concatenate and resize the images of several files."""
    require_memory(sum(images.nbytes for images, _ in parts), "the CIFAR images")
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    resized = images if size is None else resize(images, size)
    return Split(torch.from_numpy(resized), torch.from_numpy(labels))
