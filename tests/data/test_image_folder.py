"""A folder of the user's own images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dskd.data import Dataset, channel_statistics, load_dataset
from dskd.data.folder_files import FolderFiles
from dskd.errors import InputError
from tests.data.file_writers import write_folder


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    def call(**options: Any) -> Dataset:
        options.setdefault("root", tmp_path / "root")
        return load_dataset("folder", cache_dir=tmp_path / "cache", **options)

    return call


def test_reads_classes_in_the_order_of_their_names(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    write_folder(tmp_path / "root", classes=("owl", "cat", "dog"))
    dataset = load()
    assert dataset.classes == ("cat", "dog", "owl")
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.shape == (3, 16, 16)
    assert (dataset.mean, dataset.std) == channel_statistics(dataset.train.images)
    assert dataset.notes == ()
    with Image.open(tmp_path / "root" / "val" / "dog" / "1.png") as image:
        expected = np.asarray(image).transpose(2, 0, 1)
        assert np.array_equal(dataset.test.images[3].numpy(), expected)


def test_statistics_are_those_of_the_whole_training_split(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    write_folder(tmp_path / "root")
    part = load(fraction=0.5, val_fraction=0.25)
    assert part.mean == load().mean
    assert len(part.train) == 6


def test_other_files_are_passed_over_with_a_note(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    root = write_folder(tmp_path / "root")
    (root / "train" / "cat" / "A.JPG").write_bytes((root / "train" / "cat" / "0.png").read_bytes())
    for name in (".hidden.png", "notes.txt", "page.html"):
        (root / "train" / "cat" / name).write_text("x")
    (root / "val" / ".git").mkdir()
    (root / "val" / "list.csv").write_text("x")
    (root / "train" / "dog" / "more").mkdir()
    (root / "elsewhere").mkdir()
    dataset = load()
    assert len(dataset.train) == 13
    note = "3 files ignored, because they are no images of a class, such as train/cat/notes.txt"
    assert dataset.notes == (note,)
    assert load().notes == dataset.notes


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        (
            {"train": "Training", "val": "Testing"},
            r"root holds folders of classes in Testing, Training, and splits are called train, val "
            r"and test; rename Testing to test and Training to train, or give a folder that is no",
        ),
        ({"val": "Testing"}, "in Testing, .*; rename Testing to test, or"),
        ({"train": "Train", "val": "Test"}, "rename Test to test and Train to train, or"),
        ({"train": "TRAIN"}, "rename TRAIN to train, or"),
        ({"val": "dev"}, "rename dev to val, or"),
    ],
)
def test_splits_of_almost_the_right_name_are_refused(
    renamed: dict[str, str], said: str, tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    root = write_folder(tmp_path / "root")
    for old, new in renamed.items():
        (root / old).rename(root / new)
    with pytest.raises(InputError, match=said):
        load()


def test_a_class_may_be_called_as_a_split(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    write_folder(tmp_path, classes=("Test", "eval", "owl"))
    (tmp_path / "train").rename(tmp_path / "root")
    assert load().classes == ("Test", "eval", "owl")


def test_folders_with_images_beside_the_splits_are_noted(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    root = write_folder(tmp_path / "root")
    expected = load().fingerprint()
    for name in ("Test/0.png", "more/cat/0.png", ".hidden/0.png", "__MACOSX/0.png", "a/.b/0.png"):
        (root / name).parent.mkdir(parents=True)
        shutil.copy(root / "train/cat/0.png", root / name)
    (root / "scripts").mkdir()
    (root / "scripts/train.py").touch()
    found = load(loading="stream")
    (note,) = found.notes[:1]
    assert note.startswith("the images in Test, more belong to no split; a split is called train,")
    assert load().fingerprint() == expected


def test_a_class_of_one_image_will_do(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    write_folder(tmp_path / "root", per_class=1, val_per_class=1)
    dataset = load()
    assert len(dataset.train) == len(dataset.test) == 3


def test_names_may_be_any_the_file_system_takes(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    names = ["a b", "été", "猫"]
    write_folder(tmp_path / "root", classes=names)
    if os.name == "posix":
        odd = os.fsdecode(b"z\xff")
        for part in ("train", "val"):
            try:
                shutil.copytree(tmp_path / "root" / part / "a b", tmp_path / "root" / part / odd)
            except OSError:
                pytest.skip("the file system takes only UTF-8 names")
        names.append(odd)
    assert set(load().classes) == set(names)
    assert load().classes == load().classes


def test_refuses_missing_folders(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    with pytest.raises(InputError, match=r"data\.root is missing"):
        load(root=None)
    with pytest.raises(InputError, match="root does not exist"):
        load()
    root = tmp_path / "root"
    root.write_text("x")
    with pytest.raises(InputError, match="root is a file; give a folder of images, a manifest"):
        load()
    root.unlink()
    root.mkdir()
    with pytest.raises(InputError, match=r"root holds no class folder; .*, as in CLASS/, or as in"):
        load()
    (root / "val").mkdir()
    with pytest.raises(InputError, match=r"train is missing; .* as in train/CLASS/ and val/CLASS/"):
        load()
    (root / "val").rmdir()
    (root / "train").mkdir()
    with pytest.raises(InputError, match="train holds no class folder"):
        load()
    (root / "train" / "a.png").write_bytes(b"an image")
    with pytest.raises(InputError, match=r"train holds images and no class .* data\.unlabelled"):
        load()
    (root / "train" / "a.png").unlink()
    (root / "train").rmdir()
    write_folder(root)
    shutil.rmtree(root / "val")
    with pytest.raises(InputError, match=r"test_split\W+0\.01\W+holds out no image of 12"):
        load(test_split=0.01)


def test_refuses_classes_that_differ(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    root = write_folder(tmp_path / "root")
    (root / "val" / "cat").rename(root / "val" / "cow")
    with pytest.raises(InputError, match="val has the classes cow, which train lacks"):
        load()
    (root / "train" / "cat").rename(root / "train" / "cow")
    (root / "val" / "elk").mkdir()
    with pytest.raises(InputError, match="val has the classes elk, which train lacks"):
        load()
    (root / "train" / "elk").mkdir()
    with pytest.raises(InputError, match=r"train.elk holds no image"):
        load()
    for part in ("train", "val"):
        for number in range(7):
            (root / part / f"{part}{number}").mkdir()
    with pytest.raises(InputError, match=r"val3, val4 and 2 more"):
        load()


def test_refuses_sizes_that_differ(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    root = write_folder(tmp_path / "root")
    Image.new("RGB", (30, 20)).save(root / "val" / "dog" / "1.png")
    with pytest.raises(InputError) as caught:
        load()
    message = str(caught.value)
    assert "train/cat/0.png is 16x16" in message
    assert "val/dog/1.png is 30x20" in message
    assert "data.size" in message
    assert load(size=8).shape == (3, 8, 8)


@pytest.mark.parametrize(
    "data", [b"<html>404</html>", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_refuses_a_image_that_does_not_decode(
    data: bytes, tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    root = write_folder(tmp_path / "root")
    (root / "train" / "owl" / "2.png").write_bytes(data)
    for size in (None, 8):
        with pytest.raises(InputError, match=r"cannot decode .*train/owl/2\.png"):
            load(size=size)


def test_refuses_a_decompression_bomb(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    root = write_folder(tmp_path / "root")
    Image.new("RGB", (60, 60)).save(root / "val" / "cat" / "0.png")
    before = Image.MAX_IMAGE_PIXELS
    message = r"val/cat/0\.png is too large an image: 3,600 pixels, and data\.max_pixels is 3,599"
    with pytest.raises(InputError, match=message):
        load(size=8, max_pixels=3599)
    assert load(size=8, max_pixels=3600).shape == (3, 8, 8)
    assert before == Image.MAX_IMAGE_PIXELS


def test_refuses_what_does_not_fit_into_memory(
    tmp_path: Path, load: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "root")

    class Memory:
        available = 10 * 1024

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    message = r"18 images of 16x16 .* need 13\.5 KiB .* 10\.0 KiB .*set data=.*\"stream\"}, or free"
    with pytest.raises(InputError, match=message):
        load(loading="memory")


def test_refuses_a_image_that_went_away(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root")
    files = FolderFiles(root, ["train"], depth=2)
    (root / "train" / "cat" / "0.png").unlink()
    with pytest.raises(InputError, match=r"cannot read .*0\.png"):
        files.read("train/cat/0.png")
    with pytest.raises(InputError, match=r"other\.png is missing"):
        files.read("train/cat/other.png")
