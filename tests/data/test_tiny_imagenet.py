"""Tiny ImageNet from the published folder and the published zip."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dskd.data import Dataset, load_dataset
from dskd.errors import InputError
from tests.data.file_writers import write_tiny_imagenet, write_zip


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    def call(root: Path, **options: Any) -> Dataset:
        return load_dataset("tiny_imagenet", root=root, cache_dir=tmp_path / "cache", **options)

    return call


def test_reads_the_published_folder(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    top = write_tiny_imagenet(tmp_path)
    dataset = load(tmp_path)
    assert dataset.ids == ("n00000001", "n00000002", "n00000003")
    assert dataset.classes == ("word 0", "word 1", "word 2")
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.shape == (3, 64, 64)
    assert dataset.mean == (0.4802, 0.4481, 0.3975)
    assert dataset.notes == ()
    with Image.open(top / "train/n00000001/images/n00000001_0.JPEG") as gray:
        assert gray.mode == "L"
        for channel in dataset.train.images[0].numpy():
            assert np.array_equal(channel, np.asarray(gray))
    with Image.open(top / "val/images/val_5.JPEG") as last:
        assert np.array_equal(dataset.test.images[5].numpy().transpose(1, 2, 0), np.asarray(last))


def test_root_may_be_the_folder_the_zip_or_hold_either(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    top = write_tiny_imagenet(tmp_path / "root")
    (tmp_path / "zip").mkdir()
    archive = write_zip(top, tmp_path / "zip" / "tiny-imagenet-200.zip")
    sets = [load(root) for root in (top.parent, top, archive, archive.parent)]
    assert len({dataset.fingerprint() for dataset in sets}) == 1
    assert {dataset.classes for dataset in sets} == {sets[0].classes}


def test_only_the_listed_classes_count(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    top = write_tiny_imagenet(tmp_path)
    (top / "wnids.txt").write_text("n00000003\nn00000001\n\nn00000003\n")
    dataset = load(tmp_path)
    assert dataset.ids == ("n00000001", "n00000003")
    assert len(dataset.train) == 8
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]


def test_classes_of_one_name_are_told_apart(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    top = write_tiny_imagenet(tmp_path)
    (top / "words.txt").write_text("n00000001\tcrane, bird\nn00000003\tcrane\n")
    dataset = load(tmp_path)
    assert dataset.classes == ("crane (n00000001)", "n00000002", "crane (n00000003)")
    by_id = load(tmp_path, classes=["n00000003", "n00000002"])
    assert by_id.classes == ("crane (n00000003)", "n00000002")
    assert by_id.ids == ("n00000003", "n00000002")


def test_hidden_and_other_files_are_passed_over(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    top = write_tiny_imagenet(tmp_path)
    images = top / "train" / "n00000001" / "images"
    (images / "._n00000001_0.JPEG").write_bytes(b"x")
    (images / "notes.txt").write_bytes(b"x")
    assert len(load(tmp_path).train) == 12


def test_resizes(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    write_tiny_imagenet(tmp_path)
    assert load(tmp_path, size=32).shape == (3, 32, 32)


def test_refuses_what_is_missing(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    with pytest.raises(InputError, match="holds neither tiny-imagenet-200/ with wnids"):
        load(tmp_path)
    top = write_tiny_imagenet(tmp_path)
    for name in ("words.txt", "val/val_annotations.txt"):
        text = (top / name).read_text()
        (top / name).unlink()
        with pytest.raises(InputError, match=f"{name} is missing"):
            load(tmp_path)
        (top / name).write_text(text)
    (top / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(InputError, match=r"val_3\.JPEG is missing"):
        load(tmp_path)
    for image in (top / "train" / "n00000002" / "images").iterdir():
        image.unlink()
    with pytest.raises(InputError, match=r"n00000002.images holds no image"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ("val_0.JPEG n00000001\n", "line 1: expected a file name, a tab"),
        ("../../x.JPEG\tn00000001\n", "line 1"),
        ("val_0.JPEG\tn00000001\n", "lists no image of n00000002"),
    ],
)
def test_refuses_other_annotations(
    annotations: str, message: str, tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    top = write_tiny_imagenet(tmp_path)
    (top / "val" / "val_annotations.txt").write_text(annotations)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_refuses_an_empty_list_of_classes(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    top = write_tiny_imagenet(tmp_path)
    (top / "wnids.txt").write_text("\n")
    with pytest.raises(InputError, match="lists no class"):
        load(tmp_path)


@pytest.mark.parametrize("size", [0, 20, 300])
def test_refuses_a_image_that_does_not_decode(
    size: int, tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    path = write_tiny_imagenet(tmp_path) / "train" / "n00000002" / "images" / "n00000002_1.JPEG"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"cannot decode .*n00000002_1\.JPEG"):
        load(tmp_path)


def test_refuses_a_damaged_zip(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    archive = write_zip(write_tiny_imagenet(tmp_path), tmp_path / "t.zip")
    whole = archive.read_bytes()
    middle = whole.index(b"n00000002_1.JPEG") + 200
    for data in (b"", b"no zip", whole[:-40], whole[:middle] + b"xxxx" + whole[middle + 4 :]):
        archive.write_bytes(data)
        with pytest.raises(InputError, match=r"cannot read the archive .*t\.zip"):
            load(archive)
    with zipfile.ZipFile(archive, "w") as empty:
        empty.writestr("other.txt", "")
    with pytest.raises(InputError, match=r"wnids\.txt is missing"):
        load(archive)
