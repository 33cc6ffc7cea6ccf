"""The user's own images, in one folder for each class, with or without ``train`` and ``val``."""

from __future__ import annotations

from pathlib import Path

from dskd.data.archives import existing_path
from dskd.data.class_folders import scan
from dskd.data.dataset import Dataset
from dskd.data.own_images import load_images
from dskd.data.read_options import ReadOptions
from dskd.errors import InputError


def load(root: Path | None, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """Load the images in ``root/train/CLASS/`` and ``root/val/CLASS/``, or in ``root/CLASS/``.

    The classes are the folders in ``train``, sorted by name. Without ``train`` and any evaluation
    folder, they are the folders in ``root``. Images may lie in folders within a class. The
    evaluation split is called ``val``, ``valid``, ``validation`` or ``test``. If there is a
    validation and a test folder, the first is the validation split and the second the test split.
    If there is neither, ``test_split`` of the training images (0.2 if it is not set) become the
    test split. Folders of classes that are called almost as a split, such as ``Training``, are an
    error. A note names all other folders beside ``train`` that hold images.
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
        InputError: A folder is missing or empty, a split has another name or classes that ``train``
            lacks, images cannot be used, or the images have different sizes and ``size`` is None.
    """
    if root is None:
        raise InputError("data.root is missing: the data set 'folder' needs the images' folder")
    return load_images(scan(existing_path(root)), options, cache_dir)
