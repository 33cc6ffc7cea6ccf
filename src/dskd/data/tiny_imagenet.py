"""Tiny ImageNet, read from the published folder or from the published zip archive.

Source: Le & Yang (2015), Tiny ImageNet Visual Recognition Challenge, CS 231N, Stanford University;
http://cs231n.stanford.edu/tiny-imagenet-200.zip
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dskd.data.archives import Files, ZipFiles, existing_path
from dskd.data.cache import cached
from dskd.data.dataset import Dataset, Split, distinct_names
from dskd.data.download import download
from dskd.data.folder_files import FolderFiles
from dskd.data.image_decoding import decode
from dskd.data.image_files import is_image
from dskd.data.read_options import ReadOptions
from dskd.errors import InputError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2302, 0.2265, 0.2262)

_FOLDER = "tiny-imagenet-200"
_ARCHIVE = "tiny-imagenet-200.zip"
_PARTS = ("wnids.txt", "words.txt", "train", "val")
_ANNOTATIONS = "val/val_annotations.txt"
_SIDE = 64


def load(root: Path | None, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """Load Tiny ImageNet: 200 classes with 500 training and 50 test images each, 64x64.

    The classes are those of ``wnids.txt`` (which may list fewer), sorted by WordNet id. The name
    of a class is the first word of its entry in ``words.txt``; the id follows where two classes
    share a name. The published test images have no labels, so ``val`` is the test split.

    Args:
        root: The published folder or zip archive, or the folder that contains it; it is only read.
            None downloads the archive into the cache folder.
        options: Its size is the height and width to resize to, see `dskd.data.pixels.square`; None
            means 64.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`.

    Returns:
        Images ``[N, 3, size, size]``; gray images become RGB.

    Raises:
        InputError: A file is missing, damaged or differs in format from the published one.
    """
    files = _find(root, cache_dir)
    side = options.size or _SIDE
    return cached("tiny_imagenet", files, side, cache_dir, lambda: _build(files, side))


def _find(root: Path | None, cache_dir: Path | None) -> Files:
    if root is None:
        return ZipFiles(download(URL, MD5, cache_dir), _FOLDER + "/")
    path = existing_path(root)
    if path.is_file():
        return ZipFiles(path, _FOLDER + "/")
    for folder in (path / _FOLDER, path):
        if (folder / "wnids.txt").is_file():
            return FolderFiles(folder, _PARTS, depth=3)
    if (path / _ARCHIVE).is_file():
        return ZipFiles(path / _ARCHIVE, _FOLDER + "/")
    raise InputError(
        f"{path} holds neither {_FOLDER}/ with wnids.txt nor {_ARCHIVE}; "
        "set data.root to the folder that does, or leave it out to download Tiny ImageNet"
    )


def _build(files: Files, size: int) -> Dataset:
    wnids = sorted(set(_lines(files, "wnids.txt")))
    if not wnids:
        raise InputError(f"{files.where('wnids.txt')} lists no class; fetch the file again")
    train = _training_names(files, wnids)
    test = _test_names(files, wnids)
    images = decode(files, [name for name, _ in train + test], size)
    labels = torch.tensor([label for _, label in train + test], dtype=torch.int64)
    whole = Split(images, labels)
    cut = len(train)
    return Dataset(
        name="tiny_imagenet",
        train=Split(whole.images[:cut], whole.labels[:cut]),
        test=Split(whole.images[cut:], whole.labels[cut:]),
        classes=_class_names(files, wnids),
        mean=MEAN,
        std=STD,
        ids=tuple(wnids),
    )


def _training_names(files: Files, wnids: Sequence[str]) -> list[tuple[str, int]]:
    """Names and labels of the training images, class by class."""
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    found = []
    for name in files.names:
        match name.split("/"):
            case ["train", wnid, "images", _] if wnid in labels and is_image(name):
                found.append((name, labels[wnid]))
    for label in sorted(set(labels.values()) - {label for _, label in found}):
        raise InputError(
            f"{files.where(f'train/{wnids[label]}/images')} holds no image, "
            f"but wnids.txt lists {wnids[label]}; fetch the data set again"
        )
    return found


def _test_names(files: Files, wnids: Sequence[str]) -> list[tuple[str, int]]:
    """Names and labels of the images in ``val`` that belong to the classes."""
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    found = []
    for number, line in enumerate(_lines(files, _ANNOTATIONS), start=1):
        columns = line.split("\t")
        if len(columns) < 2 or "/" in columns[0]:
            raise InputError(
                f"{files.where(_ANNOTATIONS)}, line {number}: expected a file name, a tab and a "
                f"WordNet id, got {line[:50]!a}; fetch the file again"
            )
        if columns[1] in labels:
            found.append((f"val/images/{columns[0]}", labels[columns[1]]))
    for label in sorted(set(labels.values()) - {label for _, label in found}):
        raise InputError(
            f"{files.where(_ANNOTATIONS)} lists no image of {wnids[label]}, "
            "but wnids.txt does; fetch the data set again"
        )
    return sorted(found)


def _class_names(files: Files, wnids: Sequence[str]) -> tuple[str, ...]:
    words = dict(line.split("\t", 1) for line in _lines(files, "words.txt") if "\t" in line)
    return distinct_names([words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids], wnids)


def _lines(files: Files, name: str) -> list[str]:
    """The non-blank lines of a text file."""
    text = files.read(name).decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()]
