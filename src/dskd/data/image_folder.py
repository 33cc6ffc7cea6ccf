"""The user's own images, in one folder for each class under ``train`` and ``val``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dskd.data.archives import Files, FolderFiles, existing_path
from dskd.data.cache import cached
from dskd.data.dataset import Dataset, Split, channel_statistics
from dskd.data.image_decoding import SUFFIXES, decode, is_image
from dskd.errors import InputError, printable


def load(root: Path | None, size: int | None, cache_dir: Path | None) -> Dataset:
    """Load the images in ``root/train/CLASS/`` and ``root/val/CLASS/``.

    The classes are the folders in ``train``, sorted by name. ``val`` is the test split and must
    have the same classes. Images become upright RGB, see `dskd.data.image_decoding.to_rgb`. Hidden
    files and folders are ignored; the notes count all other files that are not images.

    Args:
        root: The folder; it is only read.
        size: Height and width of the images, see `dskd.data.image_decoding.square`; None keeps
            the size of the images, which must then all have the same size.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`.

    Returns:
        Images ``[N, 3, height, width]``; mean and standard deviation are those of ``train``.

    Raises:
        InputError: A folder is missing or empty, ``val`` has other classes, an image does not
            decode, or the images have different sizes and ``size`` is None.
    """
    if root is None:
        raise InputError("data.root is missing: the data set 'folder' needs the images' folder")
    files = FolderFiles(existing_path(root), ("train", "val"), depth=2)
    return cached("folder", files, size, cache_dir, lambda: _build(files, size))


def _build(files: Files, size: int | None) -> Dataset:
    classes = _classes(files, "train")
    _compare(files, classes, _classes(files, "val"))
    train = _images(files, "train", classes)
    test = _images(files, "val", classes)
    images = decode(files, [name for name, _ in train + test], size)
    labels = torch.tensor([label for _, label in train + test], dtype=torch.int64)
    cut = len(train)
    mean, std = channel_statistics(images[:cut])
    return Dataset(
        name="folder",
        train=Split(images[:cut], labels[:cut]),
        test=Split(images[cut:], labels[cut:]),
        classes=tuple(classes),
        mean=mean,
        std=std,
        notes=_ignored(files),
    )


def _classes(files: Files, part: str) -> list[str]:
    """The class folders in ``train`` or ``val``, sorted."""
    if f"{part}/" not in files.names:
        raise InputError(
            f"{files.where(part)} is missing; data.root must hold train/CLASS/ and val/CLASS/"
        )
    found = []
    for name in files.names:
        match name.split("/"):
            case [top, folder, ""] if top == part and not folder.startswith("."):
                found.append(folder)
    if not found:
        raise InputError(f"{files.where(part)} holds no class folder; make one for each class")
    return sorted(found)


def _compare(files: Files, train: Sequence[str], test: Sequence[str]) -> None:
    missing, extra = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if missing:
        raise InputError(
            f"{files.where('val')} lacks the classes {_some(missing)} of train; add their folders"
        )
    if extra:
        raise InputError(
            f"{files.where('val')} has the classes {_some(extra)}, which train lacks; remove them"
        )


def _images(files: Files, part: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Names and labels of the images in ``train`` or ``val``."""
    labels = {name: label for label, name in enumerate(classes)}
    found = []
    for name in files.names:
        match name.split("/"):
            case [top, folder, _] if top == part and folder in labels and is_image(name):
                found.append((name, labels[folder]))
    for label in sorted(set(labels.values()) - {label for _, label in found}):
        raise InputError(
            f"{files.where(f'{part}/{classes[label]}')} holds no image "
            f"({', '.join(sorted(SUFFIXES))}); add some, or remove the class from train and val"
        )
    return found


def _ignored(files: Files) -> tuple[str, ...]:
    """A note on files that are neither hidden nor images of a class."""
    ignored = []
    for name in files.names:
        parts = name.rstrip("/").split("/")
        expected = len(parts) < 3 if name.endswith("/") else len(parts) == 3 and is_image(name)
        if not expected and not any(part.startswith(".") for part in parts):
            ignored.append(name)
    if not ignored:
        return ()
    example = printable(ignored[0])
    return (f"{len(ignored)} files ignored that are no images of a class, such as {example}",)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
