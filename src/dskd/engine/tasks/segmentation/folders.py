"""A user's images and masks, in folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dskd.data.folder_files import FolderFiles
from dskd.data.image_files import is_image, pillow_without_limit
from dskd.data.pixels import PixelForm
from dskd.engine.tasks.segmentation.dataset import MaskedImages
from dskd.engine.tasks.segmentation.masks import (
    MaskValues,
    classes_of,
    fit,
    in_square,
    read_mask,
    shrunk,
    to_classes,
)
from dskd.engine.tasks.segmentation.patients import note_on_patients, patients_of
from dskd.engine.tasks.segmentation.scans import ScanReader
from dskd.engine.tasks.segmentation.split_folders import IMAGES, MASKS, split_folders
from dskd.errors import InputError, printable


@dataclass(frozen=True)
class ReadOptions:
    """How images and masks are read.

    Attributes:
        size: Height and width that they get; None keeps theirs, which must be one size.
        form: What the pixels of images become.
        patient: See `dskd.engine.tasks.segmentation.patients.patients_of`.
        classes: Values of the masks by the name of the class; None for all values.
    """

    size: int | None
    form: PixelForm
    patient: str
    classes: Mapping[str, int] | None


def read_folders(
    root: Path, options: ReadOptions
) -> tuple[tuple[str, ...], dict[str, MaskedImages], list[str]]:
    """Reads the images and masks of a folder.

    The folder has ``train``, and perhaps ``val`` (or ``valid``, ``validation``) and ``test``, each
    with a folder of images (``img``) and one of masks (``mask``); or it has these two itself, which
    are then ``train``. An image and its mask have the same name; the suffix may differ.

    Args:
        root: The folder.
        options: How images and masks are read.

    Returns:
        The names of the classes, the background first, the images of each split, and notes.

    Raises:
        InputError: A folder is missing, an image has no mask, or a file cannot be used.
    """
    if not root.is_dir():
        raise InputError(f"data.root={root}: no such folder")
    folders, notes = split_folders(root)
    reader = ScanReader(options.form)
    read = {split: _read_values(folder, options, reader) for split, folder in folders.items()}
    known = sorted({value for mask in read["train"].values for value in np.unique(mask).tolist()})
    classes = classes_of(known, options.classes, str(folders["train"]))
    may_occur = known if options.classes is None else None
    found = {}
    for split, part in read.items():
        masks = [
            in_square(to_classes(mask, classes, may_occur, str(path)), options.size)
            for mask, path in zip(part.values, part.paths, strict=True)
        ]
        found[split] = MaskedImages.without_seeds(
            torch.from_numpy(np.stack(part.images).transpose(0, 3, 1, 2).copy()),
            torch.from_numpy(np.stack(masks)),
            part.names,
            patients_of(part.names, options.patient),
        )
    _check_one_size(folders, found)
    names = [name for part in found.values() for name in part.names]
    notes += [*reader.notes(), *note_on_patients(names, options.patient)]
    return ("background", *classes), found, notes


@dataclass(frozen=True)
class _Values:
    """Images with the values of their masks.

    Attributes:
        names: Without folder and suffix.
        paths: Files of the masks.
        images: uint8, ``[H, W, C]`` each.
        values: Of `shrunk`.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    images: list[NDArray[np.uint8]]
    values: list[MaskValues]


def _read_values(folder: Path, options: ReadOptions, reader: ScanReader) -> _Values:
    """The images and masks of one split, each pair of one size."""
    image_folder, mask_folder = _subfolder(folder, IMAGES), _subfolder(folder, MASKS)
    files = FolderFiles(folder, [image_folder, mask_folder], depth=1)
    images, masks = _by_stem(files, image_folder), _by_stem(files, mask_folder)
    _check_pairs(folder, images, masks, image_folder, mask_folder)
    found = _Values(tuple(images), tuple(folder / masks[stem] for stem in images), [], [])
    with pillow_without_limit():
        for stem, name in images.items():
            image = reader.read(files, name)
            values = read_mask(files, masks[stem], options.form)
            if image.shape[:2] != values.shape:
                raise InputError(
                    f"{folder / name} is {_sides(image)} and its mask {folder / masks[stem]} is "
                    f"{_sides(values)}; give them one size"
                )
            image = _resized(image, options.size)
            if found.images and image.shape != found.images[0].shape:
                raise InputError(
                    f"{folder / name} is {_sides(image)} and others in {folder} are "
                    f"{_sides(found.images[0])}; give all one size with data.size"
                )
            found.images.append(image)
            found.values.append(shrunk(values, options.size))
    return found


def _resized(image: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    if size is None or image.shape[:2] == (size, size):
        return image
    channels = image.shape[2]
    drawn = Image.fromarray(image if channels == 3 else image[:, :, 0])
    return np.asarray(fit(drawn, size, Image.Resampling.BILINEAR)).reshape(size, size, channels)


def _subfolder(folder: Path, names: tuple[str, ...]) -> str:
    """The folder of images or of masks, by any of its names."""
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name.lower() in names)
    if len(found) != 1:
        what = "two of the folders" if found else "none of the folders"
        raise InputError(f"{folder} has {what} {', '.join(names)}; exactly one is needed")
    return found[0]


def _by_stem(files: FolderFiles, folder: str) -> dict[str, str]:
    """The image files of a folder by their names without folder and suffix."""
    found: dict[str, str] = {}
    for name in files.names:
        path = PurePosixPath(name)
        if str(path.parent) != folder or not is_image(name):
            continue
        if other := found.get(path.stem):
            raise InputError(
                f"{files.where(other)} and {files.where(name)} have one name; keep one of them"
            )
        found[path.stem] = name
    return found


def _check_pairs(
    folder: Path, images: dict[str, str], masks: dict[str, str], image_folder: str, mask_folder: str
) -> None:
    """Refuses images without masks, and masks without images."""
    if not images:
        raise InputError(f"{folder / image_folder} has no images")
    for one, other, missing in (
        (images, masks, mask_folder),
        (masks, images, image_folder),
    ):
        if alone := sorted(one.keys() - other.keys()):
            first = folder / one[alone[0]]
            raise InputError(
                f"{len(alone)} files have no file of the same name in {folder / missing}, as "
                f"{printable(str(first))}; add it, or remove this one"
            )


def _check_one_size(folders: Mapping[str, Path], splits: Mapping[str, MaskedImages]) -> None:
    """Refuses splits of different sizes."""
    first = splits["train"].images.shape[1:]
    for split, part in splits.items():
        if part.images.shape[1:] != first:
            raise InputError(
                f"images in {folders[split]} are {part.images.shape[3]}x{part.images.shape[2]}, "
                f"those in {folders['train']} {first[2]}x{first[1]}; give all one size with "
                "data.size"
            )


def _sides(array: NDArray[Any]) -> str:
    """Width and height, as image programs write them."""
    return f"{array.shape[1]}x{array.shape[0]}"
