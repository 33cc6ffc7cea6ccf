"""Unusual data sets: small runs on them finish, or are refused in one line before any work."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import dskd
from dskd import methods
from dskd.data import Dataset, Split
from dskd.models.zoo import build
from tests.builders import make_dataset, trusted
from tests.data.file_writers import cifar_entries, python3_pickle, write_cifar100, write_folder
from tests.faults.outcomes import refusal

FAMILY = "unusual data sets"

_BATCH = 4
SMALL: dict[str, dict[str, Any]] = {
    "sskd": {"head_epochs": 1},
    "crd": {"negatives": 4},
    "wkd": {"cost": "classifier"},  # by default it needs two images of each class
}
"""Settings that let a method train on a few images."""
THREE_CLASSES = ("lskd",)
"""Methods whose defaults teach nothing with two classes, and are refused."""


def _with(train: list[int], classes: int, test: list[int] | None = None) -> Dataset:
    """Random images with these labels."""
    data = make_dataset(classes=classes, per_class=3, size=16)
    random = torch.Generator().manual_seed(0)

    def split(labels: list[int]) -> Split:
        images = torch.randint(0, 256, (len(labels), 3, 16, 16), generator=random)
        return Split(images.to(torch.uint8), torch.tensor(labels, dtype=torch.int64))

    return replace(data, train=split(train), test=split(test or [*range(classes)]))


OBJECTS: dict[str, Callable[[], Dataset]] = {
    "a last batch of one": lambda: _with([0, 1, 2] * 3, 3),  # 9 images, 4 a step
    "two classes": lambda: _with([0, 1] * 5, 2),
    "unused labels": lambda: _with([0, 2, 4] * 3 + [0], 5),
    "a class with one image": lambda: _with([0] * 9 + [1], 2),
    "all of one class": lambda: _with([1] * 8, 2),
    "fewer images than a batch": lambda: _with([0, 1], 2),
    "a test image of a class without training images": lambda: _with([0, 1] * 4, 3, [2]),
}
"""Data sets given in Python, on which every method is tried."""


def cases(whole: bool = True) -> Iterator[tuple[str, Callable[[Path], str]]]:
    """Every method on every data set given in Python, and every folder and file.

    Without ``whole``, each method is tried on two of the data sets.
    """
    for number, method in enumerate(methods.names()):
        for place, (name, make) in enumerate(OBJECTS.items()):
            if whole or place in (0, 1 + number % (len(OBJECTS) - 1)):
                yield f"{method}: {name}", partial(_distil, method, make)
    one = {"dataset": _with([0], 2)}
    yield "one image", partial(_check, "read", one)
    # Its last feature maps have one element, so BatchNorm has no variance to compute.
    yield (
        "one image, feature maps of one element",
        partial(_check, "refused", one, student="MobileNetV2"),
    )
    for name, (expected, change) in FOLDERS.items():
        yield f"folder: {name}", partial(_check_folder, expected, change)
    for name, (expected, files) in PICKLES.items():
        yield f"cifar: {name}", partial(_check_cifar, expected, files)


def check(case: Callable[[Path], str], folder: Path) -> str:
    """Runs one case, which is a run of one epoch."""
    return case(folder)


def _train(folder: Path, data: Any, method: str = "ce", student: str = "resnet8") -> None:
    dataset = data.get("dataset")
    classes = len(dataset.classes) if dataset is not None else 2
    torch.manual_seed(0)
    teacher = build("resnet8", num_classes=classes, in_channels=3)
    result = dskd.distill(
        student=student,
        teacher=trusted(teacher) if methods.find(method).needs_teacher else None,
        data=data,
        method={"name": method, **SMALL.get(method, {})},
        train={"epochs": 1, "batch_size": _BATCH, "lr": 1e-3},
        out=folder / "run",
    )
    assert all(parameter.isfinite().all() for parameter in result.student.parameters())
    assert math.isfinite(result.test_accuracy)
    assert 0 <= result.test_accuracy <= 100


def _distil(method: str, make: Callable[[], Dataset], folder: Path) -> str:
    data = make()
    refused = method in THREE_CLASSES and len(data.classes) == 2
    return _check("refused" if refused else "read", {"dataset": data}, folder, method=method)


def _check(
    expected: str, data: Any, folder: Path, student: str = "resnet8", method: str = "ce"
) -> str:
    """Checks that a run finishes, or is refused before its folder is created."""
    if expected == "read":
        _train(folder, data, method, student)
        return "read"
    line = refusal(lambda: _train(folder, data, method, student))
    assert line is not None, "the data set was accepted"
    assert not (folder / "run").exists(), "something was left behind"
    return "refused"


# ---- image folders


def _image(path: Path, size: tuple[int, int] = (16, 16)) -> None:
    Image.new("RGB", size, "red").save(path)


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder)


def _to_file(folder: Path) -> None:
    """A file in place of a folder."""
    shutil.rmtree(folder)
    folder.write_text("x")


def _keep(count: int, *folders: Path) -> None:
    """Removes all images of each folder but the first ones."""
    for folder in folders:
        for path in sorted(folder.iterdir())[count:]:
            path.unlink()


FOLDERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "valid": ("read", lambda root: None),
    "a class with one image": ("read", lambda root: _keep(1, root / "train/cat", root / "val/cat")),
    "classes with one image": ("read", lambda root: _keep(1, *root.glob("*/*"))),
    "an empty class": ("refused", lambda root: _keep(0, root / "train/cat")),
    "an empty class in val": ("read", lambda root: _keep(0, root / "val/cat")),
    "empty classes": ("refused", lambda root: _keep(0, *root.glob("*/*"))),
    "a class with hidden files only": ("refused", lambda root: [
        path.rename(path.with_name("." + path.name)) for path in (root / "train/cat").iterdir()]),
    "no classes": ("refused", lambda root: _remove(*root.glob("*/*"))),
    "one class": ("refused", lambda root: _remove(root / "train/dog", root / "val/dog")),
    "no val": ("read", lambda root: _remove(root / "val")),
    "a val that is a file": ("refused", lambda root: _to_file(root / "val")),
    "a class missing in val": ("read", lambda root: _remove(root / "val/dog")),
    "a class that is a file": ("refused", lambda root: _to_file(root / "train/dog")),
    "a circular link": ("read", lambda root: (root / "train/cat/l").symlink_to(root)),
    "a broken link": ("refused", lambda root: (root / "train/cat/l.png").symlink_to("nothing")),
    "an image of another size": ("read", lambda root: _image(
        root / "train/cat/9.png", (9, 16))),
    "an empty image file": ("refused", lambda root: (root / "val/cat/9.png").write_bytes(b"")),
    "a name with control characters": ("read", lambda root: _image(
        root / "train/cat/\x1b[2J.png")),
    "a class with a control character": ("read", lambda root: [
        (root / p / "dog").rename(root / p / "\x1b]0;x\x07") for p in ("train", "val")]),
}  # fmt: skip
"""Changes to a valid image folder, and the expected outcomes."""


def _check_folder(expected: str, change: Callable[[Path], object], folder: Path) -> str:
    root = write_folder(folder / "root", classes=("cat", "dog"), per_class=5)
    change(root)
    return _check(expected, {"name": "folder", "root": root, "cache_dir": folder / "cache"}, folder)


# ---- files of CIFAR-100


def _entries(count: int, **changes: Any) -> dict[bytes, Any]:
    """Entries of a file with two classes of ``count`` images each, some of them replaced."""
    entries = cifar_entries("fine_labels", 2, count)
    return entries | {key.encode(): value for key, value in changes.items()}


_NOTHING = np.zeros((0, 3072), np.uint8)
PICKLES: dict[str, tuple[str, dict[str, dict[bytes, Any]]]] = {
    "valid": ("read", {}),
    "two classes with one image": ("read", {"train": _entries(1), "test": _entries(1)}),
    "unused labels": ("read", {"meta": {b"fine_label_names": [b"a", b"b", b"c"]}}),
    "no training images": ("refused", {"train": _entries(1, data=_NOTHING, fine_labels=[])}),
    "no test images": ("refused", {"test": _entries(1, data=_NOTHING, fine_labels=[])}),
    "fewer labels than images": ("refused", {"train": _entries(3, fine_labels=[0])}),
    "more labels than images": ("refused", {"train": _entries(3, fine_labels=[0] * 99)}),
    "a negative label": ("refused", {"train": _entries(1, fine_labels=[0, -1])}),
    "a label too large": ("refused", {"train": _entries(1, fine_labels=[0, 2])}),
    "a label far too large": ("refused", {"train": _entries(1, fine_labels=[0, 2**70])}),
    "labels that are text": ("refused", {"train": _entries(1, fine_labels=["0", "1"])}),
    "labels that are a number": ("refused", {"train": _entries(1, fine_labels=0)}),
    "no labels": ("refused", {"train": {b"data": _entries(1)[b"data"]}}),
    "no images": ("refused", {"train": {b"fine_labels": [0, 1]}}),
    "images that are a list": ("refused", {"train": _entries(1, data=[[0] * 3072] * 2)}),
    "images of another size": (
        "refused", {"train": _entries(1, data=_entries(1)[b"data"][:, 1:])}),
    "images of floats": (
        "refused", {"train": _entries(1, data=_entries(1)[b"data"].astype("f4"))}),
    "no class names": ("refused", {"meta": {b"fine_label_names": []}}),
    "one class name": ("refused", {"meta": {b"fine_label_names": [b"a"]}}),
    "a very long class name": ("refused", {"meta": {b"fine_label_names": [b"a" * 10**5, b"b"]}}),
    "equal class names": ("read", {"meta": {b"fine_label_names": [b"a", b"a"]}}),
    "class names that are numbers": ("refused", {"meta": {b"fine_label_names": [0, 1]}}),
}  # fmt: skip
"""Replaced content of the files, and the expected outcomes."""


def _check_cifar(expected: str, changes: dict[str, dict[bytes, Any]], folder: Path) -> str:
    root = write_cifar100(folder / "root", classes=2, per_class=5)
    for name, entries in changes.items():
        (root / name).write_bytes(python3_pickle(entries))
    return _check(
        expected, {"name": "cifar100", "root": root, "cache_dir": folder / "cache"}, folder
    )
