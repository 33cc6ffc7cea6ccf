"""The user's own images, in one folder for each class, with or without ``train`` and ``val``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dskd.data.archives import existing_path
from dskd.data.cache import cached
from dskd.data.class_folders import ClassFolders, scan
from dskd.data.dataset import Dataset, Samples, Split, channel_statistics
from dskd.data.decoded_images import DecodedImages
from dskd.data.folder_dataset import Outcome, assemble
from dskd.data.image_decoding import decode_all
from dskd.data.path_list import PathList
from dskd.data.read_options import ReadOptions
from dskd.data.streamed_folder import must_stream, stream_folder
from dskd.data.subset import HELD_OUT
from dskd.errors import InputError


def load(root: Path | None, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """Load the images in ``root/train/CLASS/`` and ``root/val/CLASS/``, or in ``root/CLASS/``.

    The classes are the folders in ``train``, sorted by name. Without ``train`` and any evaluation
    folder, they are the folders in ``root``. Images may lie in folders within a class. The
    evaluation split is called ``val``, ``valid``, ``validation`` or ``test``. If there is a
    validation and a test folder, the first is the validation split and the second the test split.
    If there is neither, ``val_fraction`` of the training images (0.2 if it is not set) become the
    test split.
    Images become upright RGB or gray, see `dskd.data.pixels.convert`. Hidden files, and folders
    that tools leave behind, are ignored; the notes count them, and all other files that are not
    images.

    Args:
        root: The folder; it is only read.
        options: How it is read.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`.

    Returns:
        Images ``[N, C, height, width]``; mean and standard deviation are those of ``train``.

    Raises:
        InputError: A folder is missing or empty, a split has classes that ``train`` lacks, images
            cannot be used, or the images have different sizes and ``size`` is None.
    """
    if root is None:
        raise InputError("data.root is missing: the data set 'folder' needs the images' folder")
    folders = scan(existing_path(root))
    files, chosen = folders.files, options.val_fraction
    held_out = 0.0 if folders.evaluation else HELD_OUT if chosen is None else chosen
    if folders.validation and options.val_fraction:
        raise InputError(
            f"{files.where(folders.validation)} is the validation split; drop data.val_fraction"
        )
    if not folders.evaluation and not held_out:
        raise InputError(
            f"{files.root} has no val/CLASS/ or test/CLASS/, and data.val_fraction=0 holds no "
            "image out; add a folder, or drop data.val_fraction"
        )
    return read(folders, replace(options, val_fraction=held_out), cache_dir, "folder")


def read(folders: ClassFolders, options: ReadOptions, cache_dir: Path | None, name: str) -> Dataset:
    """Read the images that were found in a folder, or leave them in their files.

    Args:
        folders: What was found.
        options: How it is read.
        cache_dir: As for `load`.
        name: Of the cached file.

    Raises:
        InputError: Images cannot be used, or have different sizes and ``size`` is None.
    """
    if note := must_stream(folders, options):
        return stream_folder(folders, options, cache_dir, note)
    key = options.size, options.form, options.skip_bad, options.val_fraction
    return cached(name, folders.files, key, cache_dir, lambda: _build(folders, options, cache_dir))


def _build(folders: ClassFolders, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """The data set with all images in memory."""
    files = folders.files
    names = folders.all_names()
    kept = DecodedImages(files, (options.size, options.form), cache_dir)
    found = decode_all(files, names, options.size, options.form, kept.rows(names))
    if (folders.bad or found.bad) and not options.skip_bad:
        kept.write([names[index] for index in found.good], found.images)
    else:
        kept.remove()

    def split(rows: slice, labels: Tensor, names: PathList) -> Samples:
        return Split(found.images[rows], labels, tuple(names))

    def statistics(train: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return channel_statistics(train.images)

    outcome = Outcome(found.good, found.bad, found.deepest, split, statistics)
    return assemble(folders, options, outcome)
