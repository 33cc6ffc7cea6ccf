"""The two sets of the protocol, as image folders: ``python -m evidence.prepare DATA OUT``.

DATA holds ``tiny-imagenet-200/`` in its published form, with all 200 classes or fewer. Each set is
written to ``OUT/<set>/train/<class>`` and ``OUT/<set>/val/<class>``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dskd.errors import InputError, brief
from dskd.storage.yaml_file import read_yaml_file

SETS = Path(__file__).with_name("sets.yaml")
VALIDATION = "val/val_annotations.txt"
HELD_OUT = 5
"""A training image whose number this divides is never trained on."""


def classes_of(name: str) -> list[str]:
    """The WordNet ids of a set's classes.

    Example:
        >>> len(classes_of("tuning")), len(set(classes_of("tuning")) & set(classes_of("final")))
        (20, 0)
    """
    classes: list[str] = read_yaml_file(SETS, "sets")[name]
    return classes


def prepare(data: Path, name: str, out: Path, classes: list[str] | None = None) -> Path:
    """Writes a set as an image folder, once.

    Args:
        data: The folder that holds ``tiny-imagenet-200/``.
        name: Of the set.
        out: Its folder is made here.
        classes: Of the set; None for those of the protocol.

    Returns:
        The folder, for ``data.root`` of the data set ``folder``.

    Raises:
        InputError: A class or the list of validation images is not there.
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
            f"{source} lacks {len(missing)} classes of the set {name}, such as {missing[0]}; give "
            "the folder that holds tiny-imagenet-200/ with them"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as made:  # whole or not at all
        for image, place in _places(source, set(classes)):
            target = Path(made) / name / place / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, target)
        (Path(made) / name).rename(folder)
    return folder


def _places(source: Path, classes: set[str]) -> Iterator[tuple[Path, str]]:
    """Every image of the classes, and where it goes."""
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
    """Writes the sets that can be made of DATA."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--sets", nargs="+", choices=("tuning", "final"), default=["tuning", "final"]
    )
    chosen = parser.parse_args()
    try:
        for name in chosen.sets:
            print(prepare(chosen.data, name, chosen.out))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
