"""Find the images of each class in a folder. Nothing is decoded here."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dskd.data.class_names import alike, compare_classes
from dskd.data.folder_files import FolderFiles, names_below
from dskd.data.image_files import is_image
from dskd.data.image_source import (
    EVALUATION,
    TEST,
    TRAIN,
    VALIDATION,
    ImageSource,
    evaluation_splits,
    some,
)
from dskd.data.path_list import LabelledPaths
from dskd.errors import InputError, printable

TOOLS = frozenset(("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"))
"""Folders that tools leave behind."""
TOOL_FILES = frozenset(("thumbs.db", "desktop.ini"))
MEANT = {
    **dict.fromkeys((TRAIN, "training"), TRAIN),
    **dict.fromkeys((*VALIDATION, "dev", "eval"), "val"),
    **dict.fromkeys((TEST, "testing"), TEST),
}
"""The splits that folders may be meant to be, by their names in lower case."""


def scan(root: Path) -> ImageSource:
    """Find the splits, the classes and the images of a folder.

    Args:
        root: The folder. It is only read.

    Raises:
        InputError: It cannot be listed, there is no class folder, a class of the training images
            has no image, two folders could be the validation split, a split has another name, or
            has classes that the training images lack.
    """
    parts = entries(root)
    _check_splits(root, parts)
    train = TRAIN if {TRAIN, *EVALUATION} & {*parts} else ""
    files = FolderFiles(root, (TRAIN, *EVALUATION) if train else parts, depth=None)
    classes = _class_folders(files, train)
    if not classes:
        where = files.where(train) if train else root
        own = (name.removeprefix(_prefix(train)) for name in files.names)
        if any(is_image(name) and "/" not in name for name in own):
            raise InputError(
                f"{where} holds images and no class folder; put them into a folder for each class, "
                "or let them join labelled images with data.unlabelled, or set data.labels=none to "
                "learn from the teacher alone"
            )
        problem = "is missing" if train and train not in parts else "holds no class folder"
        raise InputError(
            f"{where} {problem}; data.root must hold a folder for "
            "each class, as in CLASS/, or as in train/CLASS/ and val/CLASS/"
        )
    validation, evaluation = evaluation_splits(parts, str(root), "{}/")
    labels = {name: label for label, name in enumerate(classes)}
    images: dict[str, LabelledPaths] = {}
    bad: list[tuple[str, str]] = []
    notes = _ignored(files, train) + alike(classes)
    notes += _no_splits(root, parts) if train else []
    for part in filter(None, (validation, evaluation)):
        notes += compare_classes(part, files.where(part), classes, _class_folders(files, part))
    for part in (train, *filter(None, (validation, evaluation))):
        images[part] = LabelledPaths(readable_images(files, partial(_label, part, labels), bad))
        present = set(np.unique(images[part].labels).tolist())
        there = set(_class_folders(files, part))
        empty = [name for name in classes if name in there and labels[name] not in present]
        if empty and part == train:
            raise InputError(
                f"{files.where(_prefix(train) + empty[0])} holds no image, such as a .jpg file; "
                "add some, or remove the folder"
            )
        if empty:
            notes.append(f"{part} has no image of {some(empty)}: trained, and never tested")
        if not images[part]:
            raise InputError(f"{files.where(part)} holds no image of any class; add some")
    no_test = f"{root} has no val/CLASS/ or test/CLASS/"
    splits = train, classes, images, validation, evaluation
    return ImageSource("folder", files, *splits, no_test, bad, notes)


def entries(root: Path, setting: str = "data.root") -> list[str]:
    """The files and folders right below the root that are not hidden.

    Args:
        root: The folder.
        setting: That names it, for errors.

    Raises:
        InputError: It cannot be listed.
    """
    try:
        return [entry.name for entry in root.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        if root.is_file():
            raise InputError(
                f"{root} is a file; give a folder of images, a manifest (.csv, .tsv, .jsonl, "
                ".ndjson or .parquet), or tar files"
            ) from None
        raise InputError(f"cannot list {root}: {error}; check {setting}") from error


def _check_splits(root: Path, parts: Sequence[str]) -> None:
    """Refuses folders of classes whose names are almost those of a split.

    They would become classes, or be left out.
    """
    wrong = {
        name: MEANT[name.casefold()]
        for name in sorted(parts)
        if name.casefold() in MEANT and name not in (TRAIN, *EVALUATION)
        # A class may have such a name: its images lie right in its folder.
        if _has_image(root, name, level=2, depth=None)
    }
    if wrong:
        renamed = " and ".join(f"{name} to {split}" for name, split in wrong.items())
        raise InputError(
            f"{root} holds folders of classes in {some([*wrong])}, and splits are called train, "
            f"val and test; rename {renamed}, or give a folder that is no split another name"
        )


def _no_splits(root: Path, parts: Sequence[str]) -> list[str]:
    """A note on the folders beside those of the splits that hold images."""
    others = [
        name
        for name in sorted(parts)
        if name not in (TRAIN, *EVALUATION) and not is_tool(name)
        if _has_image(root, name, level=1, depth=1)
    ]
    if not others:
        return []
    return [
        f"the images in {some(others)} belong to no split; a split is called train, val (or valid, "
        "validation) or test"
    ]


def _has_image(root: Path, name: str, level: int, depth: int | None) -> bool:
    """Whether a folder has an image at least ``level`` folders below the root.

    ``depth`` limits the search, see `names_below`. What cannot be listed has none.
    """
    with contextlib.suppress(OSError):
        return (root / name).is_dir() and any(
            one.count("/") >= level and is_image(one) and not any(map(is_tool, one.split("/")))
            for one in names_below(root, name, depth)
        )
    return False


def _prefix(part: str) -> str:
    """How the names of the files of a split begin."""
    return f"{part}/" if part else ""


def _class_folders(files: FolderFiles, part: str) -> list[str]:
    """The class folders of a split, sorted."""
    found = []
    for name in files.names:
        if name.startswith(_prefix(part)):
            match name.removeprefix(_prefix(part)).split("/"):
                case [folder, ""] if not is_tool(folder):
                    found.append(folder)
    return sorted(found)


def readable_images(
    files: FolderFiles,
    label_of: Callable[[str], int | None],
    bad: list[tuple[str, str]],
) -> Iterator[tuple[str, int]]:
    """Names and labels of the images that are not in folders of tools.

    Args:
        files: The tree of files.
        label_of: The label of an image by its name; None if it is none of the images.
        bad: Gets those that cannot be read, with the reason.
    """
    for name, size in files.sizes():
        if not is_image(name) or (label := label_of(name)) is None:
            continue
        if any(map(is_tool, name.split("/")[:-1])):
            continue
        reason = files.unreadable.get(name) or ("" if size else "empty")
        if reason:
            bad.append((name, reason))
        else:
            yield name, label


def _label(part: str, labels: Mapping[str, int], name: str) -> int | None:
    """The label of an image of a split; None for files that are in no folder of a class."""
    prefix = _prefix(part)
    folder, *inside = name.removeprefix(prefix).split("/", 1)
    return labels.get(folder) if inside and name.startswith(prefix) else None


def is_tool(name: str) -> bool:
    """Whether a file or folder is hidden or was left behind by a tool."""
    return name.startswith(".") or name in TOOLS or name.lower() in TOOL_FILES


def _ignored(files: FolderFiles, train: str) -> list[str]:
    """Notes on files that are no images of a class, and on folders of tools."""
    depth = 2 if train else 1
    strange, tools = [], Counter[str]()
    for name in files.names:
        parts = name.rstrip("/").split("/")
        tool = next((part for part in parts if is_tool(part)), None)
        if tool is not None:
            tools[tool] += not name.endswith("/")
        elif not name.endswith("/") and not (len(parts) > depth and is_image(name)):
            strange.append(name)
    notes = []
    if strange:
        several = f"{len(strange)} files ignored, because they are no images of a class, such as "
        single = "1 file ignored, because it is no image of a class: "
        notes.append(f"{several if len(strange) > 1 else single}{printable(strange[0])}")
    named = [
        f"{printable(name)} ({count} file{'s' * (count != 1)})"
        for name, count in tools.items()
        if name in TOOLS
    ]
    if named:
        notes.append(f"ignored: {', '.join(named)}")
    return notes
