"""Writers of small data sets in the published formats.

The images can be learned: each class has a colour of its own, with noise on it.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


def random_images(classes: int, per_class: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images, uint8 ``[classes * per_class, side, side, 3]``, class by class."""
    colours = np.random.RandomState(7).randint(40, 216, (classes, 1, 1, 1, 3))
    noise = np.random.RandomState(seed).randint(-40, 41, (classes, per_class, side, side, 3))
    levels: NDArray[np.uint8] = (colours + noise).astype(np.uint8).reshape(-1, side, side, 3)
    return levels


def cifar_entries(
    key: str, classes: int, per_class: int, seed: int = 0, side: int = 32
) -> dict[bytes, Any]:
    """The content of a CIFAR file."""
    rows = random_images(classes, per_class, side, seed).transpose(0, 3, 1, 2)
    labels = [label for label in range(classes) for _ in range(per_class)]
    return {
        b"batch_label": b"a batch",
        key.encode(): labels,
        b"data": rows.reshape(len(rows), -1),
        b"filenames": [b"%d.png" % number for number in range(len(rows))],
    }


def python2_pickle(value: Any) -> bytes:
    """A pickle as Python 2 and an early NumPy wrote it."""
    return b"\x80\x02" + _python2(value) + b"."


def python3_pickle(value: Any) -> bytes:
    """A protocol 2 pickle as Python 3 and today's NumPy write it."""
    return pickle.dumps(value, protocol=2)


def _python2(value: Any) -> bytes:
    match value:
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int():
            return b"J" + struct.pack("<i", value)
        case list():
            return b"(" + b"".join(map(_python2, value)) + b"l"
        case dict():
            return b"(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"d"
        case np.ndarray():
            shape = b"(" + b"".join(_python2(extent) for extent in value.shape) + b"t"
            kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
            kind += b"J\xff\xff\xff\xffK\x00tb"
            made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
            return made + b"(K\x01" + shape + kind + b"I00\n" + _python2(value.tobytes()) + b"tb"
    raise TypeError(type(value))


def write_cifar100(
    root: Path,
    classes: int = 4,
    per_class: int = 6,
    test_per_class: int = 2,
    *,
    python2: bool = False,
) -> Path:
    """``root/cifar-100-python/``; returns that folder."""
    names = [b"class_%d" % label for label in range(classes)]
    return _write_pickles(
        root / "cifar-100-python",
        {
            "train": cifar_entries("fine_labels", classes, per_class),
            "test": cifar_entries("fine_labels", classes, test_per_class, seed=1),
            "meta": {b"fine_label_names": names, b"coarse_label_names": [b"all"]},
        },
        python2,
    )


def write_cifar10(
    root: Path,
    classes: int = 4,
    per_class: int = 2,
    test_per_class: int = 2,
    *,
    python2: bool = False,
) -> Path:
    """``root/cifar-10-batches-py/``, ``per_class`` in each of five batches; returns that folder."""
    files: dict[str, Any] = {
        f"data_batch_{part}": cifar_entries("labels", classes, per_class, seed=part)
        for part in range(1, 6)
    }
    files["test_batch"] = cifar_entries("labels", classes, test_per_class, seed=6)
    files["batches.meta"] = {b"label_names": [b"class_%d" % label for label in range(classes)]}
    return _write_pickles(root / "cifar-10-batches-py", files, python2)


def _write_pickles(folder: Path, files: Mapping[str, Any], python2: bool) -> Path:
    folder.mkdir(parents=True)
    for name, value in files.items():
        data = python2_pickle(value) if python2 else python3_pickle(value)
        (folder / name).write_bytes(data)
    return folder


def write_tar(folder: Path, path: Path) -> Path:
    """A folder as a published ``.tar.gz``."""
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return path


def write_zip(folder: Path, path: Path) -> Path:
    """A folder as a published ``.zip``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    return path


def write_tiny_imagenet(
    root: Path, classes: int = 3, per_class: int = 4, val_per_class: int = 2, side: int = 64
) -> Path:
    """``root/tiny-imagenet-200/``, its first training image gray; returns that folder."""
    top = root / "tiny-imagenet-200"
    wnids = [f"n{label:08}" for label in range(1, classes + 1)]
    train = random_images(classes, per_class, side).reshape(classes, per_class, side, side, 3)
    for label, wnid in enumerate(wnids):
        images = top / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text("")
        for number, sample in enumerate(train[label]):
            image = Image.fromarray(sample)
            gray = image.convert("L") if label == number == 0 else image
            gray.save(images / f"{wnid}_{number}.JPEG")
    (top / "val" / "images").mkdir(parents=True)
    lines = []
    for number, sample in enumerate(random_images(classes, val_per_class, side, seed=1)):
        Image.fromarray(sample).save(top / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnids[number // val_per_class]}\t0\t0\t62\t62\n")
    (top / "val" / "val_annotations.txt").write_text("".join(lines))
    (top / "wnids.txt").write_text("\n".join(reversed(wnids)) + "\n")
    words = [f"{wnid}\tword {label}, other word\n" for label, wnid in enumerate(wnids)]
    (top / "words.txt").write_text("n99999999\tunused\n" + "".join(words))
    return top


def write_folder(
    root: Path,
    classes: Sequence[str] = ("cat", "dog", "owl"),
    per_class: int = 4,
    val_per_class: int = 2,
    side: int = 16,
) -> Path:
    """``root/train/CLASS/`` and ``root/val/CLASS/`` with PNG images; returns ``root``."""
    for part, count, seed in (("train", per_class, 0), ("val", val_per_class, 1)):
        for number, image in enumerate(random_images(len(classes), count, side, seed)):
            folder = root / part / classes[number // count]
            folder.mkdir(parents=True, exist_ok=True)
            # Noise cannot be made smaller.
            Image.fromarray(image).save(folder / f"{number % count}.png", compress_level=0)
    return root


def rows_of_folder(root: Path) -> list[dict[str, str]]:
    """Path, label and split of each image that `write_folder` wrote, in the order of a folder."""
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*/*.png"))
    return [
        {"path": name, "label": name.split("/")[1], "split": name.split("/")[0]} for name in files
    ]


def write_manifest(
    root: Path,
    path: Path,
    more: Sequence[Mapping[str, Any]] = (),
    columns: Mapping[str, str] | None = None,
) -> Path:
    """A manifest of what `write_folder` wrote, and of ``more`` rows; returns its path."""
    named = columns or {"path": "path", "label": "label", "split": "split"}
    rows = [{named[key]: row[key] for key in named} for row in [*rows_of_folder(root), *more]]
    match path.suffix.lower():
        case ".jsonl":
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        case ".parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
            parquet.write_table(table, path)
        case suffix:
            with path.open("w", newline="", encoding="utf-8") as file:
                delimiter = "\t" if suffix == ".tsv" else ","
                writer = csv.DictWriter(file, list(named.values()), delimiter=delimiter)
                writer.writeheader()
                writer.writerows(rows)
    return path


def write_shards(root: Path, folder: Path, per_shard: int) -> None:
    """``SPLIT-000000.tar`` and so on, of what `write_folder` wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        rows = [row for row in rows_of_folder(root) if row["split"] == split]
        for start in range(0, len(rows), per_shard):
            samples = {
                f"{number:06}": {
                    "png": (root / row["path"]).read_bytes(),
                    "cls": row["label"].encode(),
                }
                for number, row in enumerate(rows[start : start + per_shard])
            }
            write_shard(folder / f"{split}-{start // per_shard:06}.tar", samples)


def write_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]], mode: str = "w") -> Path:
    """A tar file with the parts of each sample, by the suffix; returns its path."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for key, parts in samples.items():
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_hf(root: Path) -> Any:
    """A ``DatasetDict`` of the bytes that `write_folder` wrote."""
    library = pytest.importorskip("datasets")
    classes = sorted({row["label"] for row in rows_of_folder(root)})
    kinds = {"image": library.Image(), "label": library.ClassLabel(names=classes)}
    splits = {}
    for split, name in (("train", "train"), ("val", "validation")):
        rows = [row for row in rows_of_folder(root) if row["split"] == split]
        columns = {
            "image": [{"bytes": (root / row["path"]).read_bytes(), "path": None} for row in rows],
            "label": [row["label"] for row in rows],
        }
        if rows:
            splits[name] = library.Dataset.from_dict(columns, features=library.Features(kinds))
    return library.DatasetDict(splits)
