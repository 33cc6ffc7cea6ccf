"""Writes the two splits of the protocol as image folders: ``python -m evidence.prepare DATA OUT``.

DATA holds ``tiny-imagenet-200/`` in its published form, with all 200 classes or fewer. Each split
is written to ``OUT/<split>/train/<class>`` and ``OUT/<split>/val/<class>``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dskd.errors import InputError, brief
from dskd.storage.yaml_file import read_yaml_file
from evidence.exits import exit_codes

SPLITS = Path(__file__).with_name("splits.yaml")
VALIDATION = "val/val_annotations.txt"
HELD_OUT = 5
"""A published training image is a test image here if this divides its number."""


def classes_of(name: str) -> list[str]:
    """The WordNet ids of the classes of a split.

    Args:
        name: The split.

    Example:
        >>> len(classes_of("tuning")), len(set(classes_of("tuning")) & set(classes_of("final")))
        (20, 0)
    """
    classes: list[str] = read_yaml_file(SPLITS, "splits")[name]
    return classes


def prepare(data: Path, name: str, out: Path, classes: list[str] | None = None) -> Path:
    """Writes a split as an image folder, unless the folder exists.

    Args:
        data: The folder that holds ``tiny-imagenet-200/``.
        name: The split.
        out: The folder of the split is created here.
        classes: The classes of the split; None for those of the protocol.

    Returns:
        The folder, for ``data.root`` of the data set ``folder``.

    Raises:
        InputError: A class or the list of validation images is missing.
    """
    folder = out / name
    if folder.is_dir():
        return folder
    classes = classes or classes_of(name)
    source = data / "tiny-imagenet-200"
    if not (source / VALIDATION).is_file():
        raise InputError(
            f"{source / VALIDATION} is missing; give the folder that holds tiny-imagenet-200/ as "
            "published"
        )
    missing = [wnid for wnid in classes if not (source / "train" / wnid / "images").is_dir()]
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} classes of the split {name}, such as {missing[0]}; "
            "give the folder that holds tiny-imagenet-200/ with them"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as made:  # complete, or not there at all
        for image, target_folder in _copies(source, set(classes)):
            target = Path(made) / name / target_folder / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, target)
        (Path(made) / name).rename(folder)
    return folder


def _copies(source: Path, classes: set[str]) -> Iterator[tuple[Path, str]]:
    """Every image of the classes, and the folder that it is copied to."""
    for wnid in sorted(classes):
        for image in sorted((source / "train" / wnid / "images").glob("*.JPEG")):
            yield image, f"{'val' if _held_out(image) else 'train'}/{wnid}"
    for line in (source / VALIDATION).read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        if wnid in classes:
            yield source / "val" / "images" / name, f"val/{wnid}"


def _held_out(image: Path) -> bool:
    number = re.search(r"_(\d+)$", image.stem)
    if number is None:
        raise InputError(f"{brief(str(image))} has no number; give the images as published")
    return int(number[1]) % HELD_OUT == 0


def main() -> None:
    """Writes the splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=("tuning", "final", "search", "claims"),
        default=["tuning", "final"],
    )
    chosen = parser.parse_args()
    with exit_codes():
        for name in chosen.splits:
            print(prepare(chosen.data, name, chosen.out))


if __name__ == "__main__":
    main()
