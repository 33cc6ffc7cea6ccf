"""The user's own images, in one folder for each class, with or without ``train`` and ``val``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dskd.data.archives import existing_path
from dskd.data.cache import cached
from dskd.data.class_folders import ClassFolders, scan
from dskd.data.dataset import Dataset, Split, channel_statistics
from dskd.data.decoded_images import DecodedImages
from dskd.data.image_decoding import decode_all
from dskd.data.read_options import ReadOptions
from dskd.data.subset import hold_out
from dskd.errors import InputError, printable

SHOWN = 5
"""Names of files that a message lists."""
HELD_OUT = 0.2
"""Fraction of the images that are the test split of a folder without one, if none is set."""


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
    key = options.size, options.form, options.skip_bad, held_out
    return cached(
        "folder", files, key, cache_dir, lambda: _build(folders, options, held_out, cache_dir)
    )


def _build(
    folders: ClassFolders, options: ReadOptions, fraction: float, cache_dir: Path | None
) -> Dataset:
    """Decodes the images; ``fraction`` of them are held out if there is no test split."""
    files = folders.files
    names = [name for split in folders.images.values() for name, _ in split]
    kept = DecodedImages(files, (options.size, options.form), cache_dir)
    found = decode_all(files, names, options.size, options.form, kept.rows(names))
    skipped = [*folders.bad, *((names[index], error.reason) for index, error in found.bad.items())]
    if skipped and not options.skip_bad:
        kept.write([names[index] for index in found.good], found.images)
        raise _bad(folders, skipped, list(found.bad.values()))
    kept.remove()
    splits = _splits(folders, found.good, found.images)
    train = splits.pop(folders.train)
    if len(train) == 0:
        raise _bad(folders, skipped, list(found.bad.values()))
    validation = splits.get(folders.validation) if folders.validation else None
    test = splits[folders.evaluation] if folders.evaluation else None
    notes = [*folders.notes, *_left_out(skipped), *_shallow(found.deepest)]
    held_out = test is None
    if test is None:
        test, train = hold_out(train, fraction)
        notes.append(
            f"there is no val/ or test/ folder: {len(test)} of the {len(test) + len(train)} "
            f"training images are held out (data.val_fraction={fraction:g}), and the student is "
            "tested on them"
        )
    mean, std = channel_statistics(train.images)
    return Dataset(
        name="folder",
        train=train,
        test=test,
        validation=validation,
        classes=tuple(folders.classes),
        mean=mean,
        std=std,
        notes=tuple(notes),
        skipped=tuple(f"{name}: {reason}" for name, reason in skipped),
        test_is_held_out=held_out,
    )


def _splits(folders: ClassFolders, good: Sequence[int], images: torch.Tensor) -> dict[str, Split]:
    """The splits by folder; ``good`` says which of all names became the ``images``."""
    everything = [(part, *one) for part, split in folders.images.items() for one in split]
    chosen = [everything[index] for index in good]
    splits = {}
    for part in folders.images:
        rows = torch.tensor([row for row, one in enumerate(chosen) if one[0] == part]).long()
        labels = torch.tensor([one[2] for one in chosen if one[0] == part], dtype=torch.int64)
        splits[part] = Split(
            images[rows[0] : rows[-1] + 1] if len(rows) else images[:0],  # rows are consecutive
            labels,
            tuple(one[1] for one in chosen if one[0] == part),
        )
    return splits


def _bad(
    folders: ClassFolders, bad: Sequence[tuple[str, str]], errors: Sequence[InputError]
) -> InputError:
    """The error about images that cannot be used."""
    if len(bad) == 1 and errors:
        return InputError(f"{errors[0]}, or leave it out with data.skip_bad=true")
    return InputError(
        f"{_counted(bad)} in {folders.files.root}: {_named(bad)}; replace or remove them, or leave "
        "them out with data.skip_bad=true"
    )


def _left_out(bad: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{_counted(bad)} and left out: {_named(bad)}"] if bad else []


def _counted(bad: Sequence[tuple[str, str]]) -> str:
    """How many files cannot be used, for each reason."""
    reasons = [reason for _, reason in bad]
    counts = ", ".join(f"{one}: {reasons.count(one)}" for one in dict.fromkeys(reasons))
    return (
        f"{len(bad)} images cannot be used ({counts})"
        if len(bad) > 1
        else (f"1 image cannot be used ({reasons[0]})")
    )


def _named(bad: Sequence[tuple[str, str]]) -> str:
    shown = ", ".join(printable(name) for name, _ in bad[:SHOWN])
    return shown if len(bad) <= SHOWN else f"{shown} and {len(bad) - SHOWN} more"


def _shallow(deepest: float | None) -> list[str]:
    """A note on 16-bit images that use a small part of the range."""
    if deepest is None or deepest >= 2**14:
        return []
    return [
        f"the images with 16 bits have values up to {deepest:g} of 65535, and few levels are left "
        f"of them in 8 bits; set data.value_range=[0,{deepest:g}]"
    ]
