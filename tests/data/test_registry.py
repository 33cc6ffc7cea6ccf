"""Loading data sets by name, and the digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dskd.data import DATASETS, channel_statistics, load_dataset
from dskd.data.dataset import distinct_names
from dskd.errors import InputError
from dskd.runtime.memory import readable, require_memory


def test_the_names() -> None:
    assert list(DATASETS) == [
        "digits",
        "cifar10",
        "cifar100",
        "tiny_imagenet",
        "folder",
        "manifest",
        "hf",
        "webdataset",
    ]
    assert all(e.description and "\n" not in e.description for e in DATASETS.values())
    assert all(callable(entry.load_function()) for entry in DATASETS.values())
    with pytest.raises(InputError, match="unknown data set 'cifar1000'; did you mean 'cifar100'"):
        load_dataset("cifar1000")


def test_digits() -> None:
    dataset = load_dataset("digits")
    assert (len(dataset.train), len(dataset.test)) == (1297, 500)
    assert dataset.shape == (1, 8, 8)
    assert dataset.classes == tuple("0123456789")
    assert (dataset.mean, dataset.std) == channel_statistics(dataset.train.images)
    assert int(dataset.train.images.max()) == 255
    counts = np.bincount(load_digits().target)
    found = torch.bincount(dataset.test.labels).numpy()
    assert np.abs(found - counts * 500 / 1797).max() < 1
    both = torch.cat([dataset.train.images, dataset.test.images]).flatten(1)
    whole = np.rint(load_digits().images * 255 / 16).reshape(1797, -1)
    assert np.array_equal(np.sort(both.numpy(), 0), np.sort(whole, 0))


def test_the_digits_never_change() -> None:
    dataset = load_dataset("digits")
    assert dataset.fingerprint() == load_dataset("digits").fingerprint()
    assert dataset.fingerprint().startswith("6b5dfb22356e29a1")


def test_digits_resized() -> None:
    dataset = load_dataset("digits", size=16)
    assert dataset.shape == (1, 16, 16)
    assert dataset.train.images.is_contiguous()
    assert load_dataset("digits", size=8).fingerprint() == load_dataset("digits").fingerprint()


def test_digits_refuse_a_root_and_a_size_too_large(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.root is not used by 'digits'"):
        load_dataset("digits", root=tmp_path)
    with pytest.raises(InputError, match=r"data\.size must be at least 1, got 0"):
        load_dataset("digits", size=0)
    with pytest.raises(InputError, match="1797 digits of 1000000x1000000 need"):
        load_dataset("digits", size=10**6)


def test_trouble_with_the_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(InputError, match=r"cannot read cifar100: .*Permission denied"):
        load_dataset("cifar100", root=tmp_path)


def test_parts_apply_in_order() -> None:
    dataset = load_dataset("digits", classes=["3", "1"], val_fraction=0.2, fraction=0.5)
    whole = load_dataset("digits", classes=["3", "1"])
    assert dataset.validation is not None
    held, total = len(dataset.validation), len(whole.train)
    assert abs(held - 0.2 * total) <= 1
    assert abs(len(dataset.train) - 0.5 * (total - held)) <= 1
    assert dataset.mean == load_dataset("digits").mean
    assert torch.equal(dataset.test.labels, whole.test.labels)


def test_sizes_for_people() -> None:
    sizes = [readable(n) for n in (0, 1023, 1024, 1536, 2**30, 5 * 2**50)]
    assert sizes == ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "1.0 GiB", "5.0 PiB"]
    assert readable(2**70) == "1048576.0 PiB"
    require_memory(1, "one byte")
    with pytest.raises(InputError, match=r"all need 1\.0 PiB of memory, but .* are available"):
        require_memory(2**50, "all")


def test_distinct_names() -> None:
    assert distinct_names(["a", "b"], ["1", "2"]) == ("a", "b")
    assert distinct_names(["a", "a"], ["1", "2"]) == ("a (1)", "a (2)")
