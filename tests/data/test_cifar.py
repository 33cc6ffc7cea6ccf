"""CIFAR-10 and CIFAR-100 from published and from fixed files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dskd.data import Dataset, load_dataset
from dskd.errors import InputError
from tests.data.file_writers import (
    cifar_entries,
    random_images,
    write_cifar10,
    write_cifar100,
    write_tar,
)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    def call(root: Path, name: str = "cifar100", **options: Any) -> Dataset:
        return load_dataset(name, root=root, cache_dir=tmp_path / "cache", **options)

    return call


@pytest.mark.parametrize("python2", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_reads_the_published_format(
    name: str, python2: bool, tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    write = write_cifar10 if name == "cifar10" else write_cifar100
    folder = write(tmp_path / "root", classes=4, python2=python2)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    dataset = load(tmp_path / "root", name)
    assert dataset.name == name
    assert dataset.classes == ("class_0", "class_1", "class_2", "class_3")
    assert dataset.shape == (3, 32, 32)
    assert len(dataset.test) == 8
    assert dataset.train.images.is_contiguous()
    assert dataset.mean[0] == (0.4914 if name == "cifar10" else 0.5071)
    assert "differ from the published files" in dataset.notes[0]
    expected = random_images(4, 2, 32, seed=6 if name == "cifar10" else 1).transpose(0, 3, 1, 2)
    assert np.array_equal(dataset.test.images.numpy(), expected)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_batches_come_in_order(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    write_cifar10(tmp_path, classes=3, per_class=2)
    dataset = load(tmp_path, "cifar10")
    expected = np.concatenate([random_images(3, 2, 32, seed=part) for part in range(1, 6)])
    assert np.array_equal(dataset.train.images.numpy(), expected.transpose(0, 3, 1, 2))
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2] * 5


def test_root_may_be_the_folder_the_archive_or_hold_either(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    folder = write_cifar100(tmp_path / "root")
    (tmp_path / "tar").mkdir()
    archive = write_tar(folder, tmp_path / "tar" / "cifar-100-python.tar.gz")
    prints = {load(r).fingerprint() for r in (folder.parent, folder, archive, archive.parent)}
    assert len(prints) == 1


def test_resizes(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    write_cifar100(tmp_path)
    half = load(tmp_path, size=16)
    assert half.shape == (3, 16, 16)
    full = load(tmp_path).train.images.float()
    blocks = torch.nn.functional.avg_pool2d(full, 2)
    assert (half.train.images - blocks).abs().max() <= 1
    assert load(tmp_path, size=48).shape == (3, 48, 48)


def test_class_names_that_repeat_are_told_apart(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    folder = write_cifar100(tmp_path, classes=3)
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"a", b"b", b"a"]}, 2))
    assert load(tmp_path).classes == ("a (0)", "b", "a (2)")


def test_labels_may_be_an_array(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    folder = write_cifar100(tmp_path)
    expected = load(tmp_path).fingerprint()
    entries = cifar_entries("fine_labels", 4, 6)
    entries[b"fine_labels"] = np.array(entries[b"fine_labels"], np.int32)
    (folder / "train").write_bytes(pickle.dumps(entries, 2))
    assert load(tmp_path).fingerprint() == expected


def _without(key: bytes) -> dict[bytes, Any]:
    entries = cifar_entries("fine_labels", 4, 6)
    del entries[key]
    return entries


def _with(key: bytes, value: Any) -> dict[bytes, Any]:
    return {**cifar_entries("fine_labels", 4, 6), key: value}


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("train", _without(b"data"), "train has no entry 'data'"),
        ("train", _without(b"fine_labels"), "no entry 'fine_labels'"),
        ("train", _with(b"data", [1, 2]), "must be an array of uint8"),
        ("train", _with(b"data", np.zeros((24, 3072))), "must be an array of uint8"),
        ("train", _with(b"data", np.zeros((24, 3000), np.uint8)), r"\[N, 3072\], got \[24, 3000\]"),
        ("train", _with(b"data", np.zeros(3072, np.uint8)), r"got \[3072\]"),
        ("test", _with(b"fine_labels", [0] * 23), "test: 24 images but 23 labels"),
        ("test", _with(b"fine_labels", [0] * 23 + [4]), "0 to 4, but there are 4 class names"),
        ("test", _with(b"fine_labels", [-1] + [0] * 23), "-1 to 0"),
        ("test", _with(b"fine_labels", ["a"] * 24), "list of small whole numbers"),
        ("test", _with(b"fine_labels", [True] * 24), "list of small whole numbers"),
        ("test", _with(b"fine_labels", [2**80] * 24), "list of small whole numbers"),
        ("test", _with(b"fine_labels", np.zeros((24, 1), np.int64)), "small whole numbers"),
        ("test", _with(b"fine_labels", np.zeros(24)), "small whole numbers"),
        ("test", _with(b"fine_labels", 3), "small whole numbers"),
        ("meta", {b"other": []}, "meta has no entry 'fine_label_names'"),
        ("meta", {b"fine_label_names": b"abc"}, "list of class names"),
        ("meta", {b"fine_label_names": [1]}, "list of class names"),
        ("meta", [1, 2], "meta is not a readable pickle"),
    ],
)
def test_refuses_other_contents(
    file: str, value: Any, message: str, tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    folder = write_cifar100(tmp_path)
    (folder / file).write_bytes(pickle.dumps(value, 2))
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert str(folder / file) in str(caught.value)


def test_refuses_an_empty_split(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    folder = write_cifar100(tmp_path)
    empty = {b"data": np.zeros((0, 3072), np.uint8), b"fine_labels": []}
    (folder / "test").write_bytes(pickle.dumps(empty, 2))
    with pytest.raises(InputError, match="empty"):
        load(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 10, 1000, -1])
def test_refuses_truncated_files(size: int, tmp_path: Path, load: Callable[..., Dataset]) -> None:
    folder = write_cifar100(tmp_path)
    path = folder / "train"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="train is not a readable pickle"):
        load(tmp_path)


def test_refuses_missing_files(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds neither cifar-100-python/ nor"):
        load(tmp_path)
    folder = write_cifar100(tmp_path)
    (folder / "test").unlink()
    with pytest.raises(InputError, match="test is missing"):
        load(tmp_path)


def test_refuses_a_damaged_archive(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    folder = write_cifar100(tmp_path / "root")
    archive = write_tar(folder, tmp_path / "cifar-100-python.tar.gz")
    whole = archive.read_bytes()
    flipped = whole[:500] + bytes([whole[500] ^ 0xFF]) + whole[501:]
    for data in (whole[: len(whole) // 2], b"no archive", b"", flipped):
        archive.write_bytes(data)
        with pytest.raises(InputError, match=r"cifar-100-python\.tar\.gz"):
            load(archive)
    (folder / "meta").unlink()
    with pytest.raises(InputError, match="meta is missing"):
        load(write_tar(folder, archive))


def test_refuses_what_does_not_fit_into_memory(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    write_cifar100(tmp_path)
    with pytest.raises(InputError, match=r"24 images of 1000000x1000000 need 65\.5 TiB .* GiB"):
        load(tmp_path, size=10**6)


def test_names_of_classes_have_200_letters_at_most(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    folder = write_cifar100(tmp_path, classes=4)
    for length in (200, 201):
        names = [*"abc", "x" * length]
        (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, 2))
        if length == 200:
            assert list(load(tmp_path).classes) == names
        else:
            with pytest.raises(InputError, match="class names of 200 letters at most"):
                load(tmp_path)
