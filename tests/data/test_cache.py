"""The cache of decoded images."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from dskd.data import Dataset, cache, image_decoding, load_dataset, own_images
from dskd.errors import InputError
from tests.data.file_writers import write_cifar100, write_folder, write_tiny_imagenet, write_zip


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets one number each time the images of a folder are decoded."""
    calls: list[int] = []

    def decode(*arguments: Any) -> object:
        calls.append(len(calls))
        return image_decoding.decode_all(*arguments)

    monkeypatch.setattr(own_images, "decode_all", decode)
    return calls


def _load(tmp_path: Path, size: int | None = None) -> Dataset:
    return load_dataset("folder", root=tmp_path / "root", cache_dir=tmp_path / "cache", size=size)


def _file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").iterdir()
    return path


def test_images_are_decoded_once(tmp_path: Path, decoded: list[int]) -> None:
    write_folder(tmp_path / "root")
    first, second = _load(tmp_path), _load(tmp_path)
    assert decoded == [0]
    assert first.fingerprint() == second.fingerprint()
    for name in ("name", "classes", "mean", "std", "notes", "ids", "shape"):
        assert getattr(first, name) == getattr(second, name)
    for split in (second.train, second.test):
        assert split.images.is_contiguous()
        split.images.zero_()  # changes the copy, not the file
    assert _load(tmp_path).fingerprint() == first.fingerprint()
    assert decoded == [0]


@pytest.mark.parametrize("name", ["cifar100", "tiny_imagenet", "zip"])
def test_every_loader_uses_it(name: str, tmp_path: Path) -> None:
    if name == "cifar100":
        write_cifar100(tmp_path / "root")
    else:
        top = write_tiny_imagenet(tmp_path / ("root" if name == "tiny_imagenet" else "unzipped"))
        if name == "zip":
            (tmp_path / "root").mkdir()
            write_zip(top, tmp_path / "root" / "tiny-imagenet-200.zip")
    loader = "cifar100" if name == "cifar100" else "tiny_imagenet"
    first = load_dataset(loader, root=tmp_path / "root", cache_dir=tmp_path / "cache")
    written = _file(tmp_path).stat().st_mtime_ns
    second = load_dataset(loader, root=tmp_path / "root", cache_dir=tmp_path / "cache")
    assert first.fingerprint() == second.fingerprint()
    assert (first.classes, first.ids, first.notes) == (second.classes, second.ids, second.notes)
    assert _file(tmp_path).stat().st_mtime_ns == written


def test_each_size_and_place_has_its_own_file(tmp_path: Path, decoded: list[int]) -> None:
    write_folder(tmp_path / "root")
    write_folder(tmp_path / "other")
    for _ in range(2):
        assert _load(tmp_path, size=8).shape == (3, 8, 8)
        assert _load(tmp_path).shape == (3, 16, 16)
        load_dataset("folder", root=tmp_path / "other", cache_dir=tmp_path / "cache")
    assert decoded == [0, 1, 2]


@pytest.mark.parametrize("change", ["write", "add", "remove", "rename", "touch"])
def test_a_change_of_the_files_is_noticed(change: str, tmp_path: Path, decoded: list[int]) -> None:
    root = write_folder(tmp_path / "root")
    old, before = _load(tmp_path), _file(tmp_path)
    path = root / "train" / "cat" / "1.png"
    if change == "write":
        Image.new("RGB", (16, 16)).save(path)
    elif change == "add":
        Image.new("RGB", (16, 16)).save(path.with_name("new.png"))
    elif change == "remove":
        path.unlink()
    elif change == "rename":
        path.rename(path.with_name("zzz.png"))
    else:
        os.utime(path, ns=(1, 1))
    new = _load(tmp_path)
    assert decoded == [0, 1]
    assert (new.fingerprint() == old.fingerprint()) == (change == "touch")
    assert _file(tmp_path) != before  # the old one is gone


@pytest.mark.parametrize("damage", ["empty", "cut", "bits", "header", "facts", "shape", "labels"])
def test_a_damaged_file_is_made_again(damage: str, tmp_path: Path, decoded: list[int]) -> None:
    write_folder(tmp_path / "root")
    whole, path = _load(tmp_path), _file(tmp_path)
    data = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(data[:-100])
    elif damage == "bits":
        path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif damage == "header":
        path.write_bytes(b"\xff" * 8 + data[8:])
    elif damage == "facts":
        path.write_bytes(data.replace(b"cat", b"cow"))
    else:
        tensors = load_file(path)
        name = "train_images" if damage == "shape" else "test_labels"
        tensors[name] = tensors[name][..., :2].contiguous()
        save_file(tensors, path, {"facts": "{}", "check": ""})
    again = _load(tmp_path)
    assert decoded == [0, 1]
    assert again.fingerprint() == whole.fingerprint()
    assert again.classes == whole.classes
    assert _file(tmp_path).read_bytes() != b""
    _load(tmp_path)
    assert decoded == [0, 1]


def test_another_version_is_not_read(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "root")
    _load(tmp_path)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    _load(tmp_path)
    assert decoded == [0, 1]


def test_a_folder_that_cannot_be_written_is_noted(tmp_path: Path) -> None:
    write_folder(tmp_path / "root")
    (tmp_path / "cache").write_text("a file where the folder should be")
    dataset = _load(tmp_path)
    assert len(dataset.train) == 12
    assert "decoded images are not cached: cannot write to" in dataset.notes[-1]
    assert (tmp_path / "cache").read_text() == "a file where the folder should be"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "root")

    def full(tensors: object, path: Path, facts: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    assert "No space left on device" in _load(tmp_path).notes[-1]
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_process_was_writing_goes_after_a_day(tmp_path: Path) -> None:
    write_folder(tmp_path / "root")
    _load(tmp_path)
    path = _file(tmp_path)
    for number in range(2):
        part = path.with_name(f".{path.name}.{number:08d}.part")
        part.write_bytes(b"half")
        yesterday = time.time() - 25 * 3600 * number
        os.utime(part, (yesterday, yesterday))
    _load(tmp_path)
    left = {p.name for p in path.parent.iterdir()}
    assert left == {path.name, f".{path.name}.00000000.part"}


def test_the_folder_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "root")
    monkeypatch.setenv("DSKD_CACHE", str(tmp_path / "cache"))
    load_dataset("folder", root=tmp_path / "root")
    assert _file(tmp_path).suffix == ".safetensors"
    monkeypatch.setenv("DSKD_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(InputError, match=r"~nobody-of-this-name/cache is of a user without a home"):
        load_dataset("folder", root=tmp_path / "root")
