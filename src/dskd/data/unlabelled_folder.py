"""A folder of images without labels, at any depth."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import torch

from dskd.data.class_folders import entries, readable_images
from dskd.data.dataset import Dataset, Samples
from dskd.data.file_split import FileSplit
from dskd.data.folder_files import FolderFiles
from dskd.data.image_source import ImageSource
from dskd.data.loader import NO_LABEL
from dskd.data.own_images import read_images
from dskd.data.path_list import LabelledPaths
from dskd.data.read_options import ReadOptions
from dskd.data.sample_split import SampleSplit
from dskd.data.subset import hold_out
from dskd.errors import InputError

SETTING = "data.unlabelled"


def join_unlabelled(
    data: Dataset,
    root: Path,
    options: ReadOptions,
    cache_dir: Path | None,
    *,
    own_root: Path | None,
    share: float,
) -> Dataset:
    """Adds the images of a folder to a data set, without labels.

    They get the size and the channels of the others. Files that are images of the data set are left
    out: no image is trained on twice, and none of the test split is trained on.

    Args:
        data: The labelled images.
        root: The folder; it is only read.
        options: How it is read.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`.
        own_root: The folder that the names of the labelled images are relative to; None if they
            are no files.
        share: Share of each batch without labels. If both kinds are streamed, it is that of the
            worker processes, too.

    Raises:
        InputError: The folder is missing or has no further image, an image cannot be used, or the
            sizes differ.
    """
    if data.unlabelled is not None:
        raise InputError(f"{SETTING}: {data.name} has images without labels; give one of both")
    channels, height, width = data.shape
    options = replace(
        options,
        size=height if height == width else None,
        form=replace(options.form, channels=channels),
    )
    found = load_unlabelled(root, options, cache_dir)
    images = found.train
    if own_root is not None:
        known = {*chain.from_iterable(_real(own_root, s.names) for s in data.splits().values())}
        paths = enumerate(_real(root, images.names))
        rows = [row for row, path in paths if path not in known]
        if len(rows) < len(images):
            images = images.take(torch.tensor(rows, dtype=torch.int64))
    if len(images) == 0:
        raise InputError(f"{SETTING}: {root} has no image that {data.name} lacks; add some")
    left_out = len(found.train) - len(images)
    beyond = f", as {left_out} more are images of the data set" if left_out else ""
    notes = *found.notes, f"{SETTING}: {len(images)} images from {root}{beyond}"
    train, images = shared_workers(data.train, images, share)
    return replace(
        data,
        train=train,
        unlabelled=images,
        notes=(*data.notes, *notes),
        skipped=(*data.skipped, *found.skipped),
    )


def without_labels(
    root: Path, options: ReadOptions, cache_dir: Path | None, test_split: float
) -> Dataset:
    """The images of a folder as a data set in which no image has a label (``data.labels=none``).

    Args:
        root: The folder; it is only read.
        options: How it is read.
        cache_dir: See `join_unlabelled`.
        test_split: Fraction of the images that become the test split.

    Returns:
        The data set, without classes: they are those of the teacher.

    Raises:
        InputError: The folder is missing or has no image, an image cannot be used, or none is held
            out.
    """
    data = load_unlabelled(root, options, cache_dir, "data.root")
    test, train = hold_out(data.train, "test_split", test_split)
    note = (
        f"data.labels=none: {len(test)} of the {len(data.train)} images are held out "
        f"(data.test_split={test_split:g}), and agreement with the teacher is measured on them"
    )
    return replace(
        data,
        train=train,
        test=test,
        test_is_held_out=True,
        without_labels=True,
        notes=(*data.notes, note),
    )


def load_unlabelled(
    root: Path, options: ReadOptions, cache_dir: Path | None, setting: str = SETTING
) -> Dataset:
    """The images of a folder as a data set without classes.

    Args:
        root: The folder; it is only read.
        options: How it is read.
        cache_dir: See `join_unlabelled`.
        setting: That names the folder, for errors.

    Returns:
        All images are in the training split. Its first one is also the test split, because no data
        set is without one.

    Raises:
        InputError: The folder is missing or has no image, or an image cannot be used.
    """
    return read_images(scan_images(root, setting), options, cache_dir)


def scan_images(root: Path, setting: str) -> ImageSource:
    """Finds the images of a folder, at any depth.

    Args:
        root: The folder.
        setting: That names it, for errors.

    Raises:
        InputError: The folder cannot be listed, or has no image.
    """
    root = root.expanduser().absolute()
    if not root.exists():
        raise InputError(f"{setting}: {root} does not exist; give a folder of images")
    files = FolderFiles(root, entries(root, setting), depth=None)
    bad: list[tuple[str, str]] = []
    images = LabelledPaths(readable_images(files, lambda _: NO_LABEL, bad))
    if not images and not bad:
        raise InputError(f"{setting}: {root} holds no image, such as a .jpg file; add some")
    return ImageSource("images", files, "", [], {"": images}, bad=bad)


def _real(root: Path, names: Iterable[str]) -> Iterator[str]:
    """The path of each file without symbolic links: links to a file are that file.

    Folders are resolved once, since that takes long for a million files.
    """
    start = str(root.expanduser().absolute())
    real_folder = cache(os.path.realpath)
    for name in names:
        folder, file = os.path.split(os.path.join(start, name))  # noqa: PTH118
        path = os.path.join(real_folder(folder), file)  # noqa: PTH118
        yield os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114


def shared_workers(train: Samples, images: Samples, share: float) -> tuple[Samples, Samples]:
    """Shares the worker processes out among two streamed splits."""
    streamed = FileSplit | SampleSplit
    if not isinstance(train, streamed) or not isinstance(images, streamed) or train.workers < 2:
        return train, images
    others = min(max(1, round(share * train.workers)), train.workers - 1)
    return replace(train, workers=train.workers - others), replace(images, workers=others)
