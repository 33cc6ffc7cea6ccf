"""The folders of a user's splits, each with a folder of images and one of masks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from dskd.data.class_folders import MEANT
from dskd.data.image_files import is_image
from dskd.data.image_source import EVALUATION, TEST, TRAIN, evaluation_splits, some
from dskd.errors import InputError

IMAGES = ("img", "image", "images")
MASKS = ("mask", "masks", "gt", "label", "labels")
"""Names of folders, in any capitals."""


def split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split, and notes on folders that belong to none.

    Args:
        root: Has ``train``, and perhaps ``val`` (or ``valid``, ``validation``) and ``test``; else
            it is itself the folder of ``train``.

    Returns:
        Folders by ``train``, ``val`` and ``test``.

    Raises:
        InputError: A folder has almost the name of a split, or two could be the validation split.
    """
    names = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    _refuse_near_names(root, names)
    if not {TRAIN, *EVALUATION} & names.keys():
        return {TRAIN: root}, []
    if TRAIN not in names:
        raise InputError(f"{root} has no folder train, with the folders img and mask in it")
    found = {TRAIN: names[TRAIN]}
    for name in filter(None, evaluation_splits([*names], str(root), "{}/")):
        found[TEST if name == TEST else "val"] = names[name]
    others = [
        name
        for name, folder in names.items()
        if folder not in found.values() and _holds_images(folder)
    ]
    if not others:
        return found, []
    return found, [
        f"the images in {some(others)} belong to no split; a split is called train, val (or valid, "
        "validation) or test"
    ]


def _refuse_near_names(root: Path, names: Mapping[str, Path]) -> None:
    """Refuses folders whose names are almost those of a split: they would be left out."""
    wrong = {
        name: MEANT[name.casefold()]
        for name, folder in names.items()
        if name.casefold() in MEANT and name not in (TRAIN, *EVALUATION)
        if _holds_images(folder)
    }
    if wrong:
        renamed = " and ".join(f"{name} to {split}" for name, split in wrong.items())
        raise InputError(
            f"{root} holds images in {some([*wrong])}, and splits are called train, val and test; "
            f"rename {renamed}, or give a folder that is no split another name"
        )


def _holds_images(folder: Path) -> bool:
    """Whether images lie in a folder, or it has a folder for them; not if it cannot be listed."""
    with contextlib.suppress(OSError):
        return any(
            path.name.lower() in IMAGES if path.is_dir() else is_image(path.name)
            for path in folder.iterdir()
        )
    return False
