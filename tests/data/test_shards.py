"""Tar shards of samples."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dskd.config.chosen import fill_in
from dskd.config.recipe import load_by_labels
from dskd.config.short_forms import data_settings, label, overrides
from dskd.data import Dataset, load_dataset, shards
from dskd.data.shard_index import read_samples
from dskd.data.shard_list import expand_braces, find_shards
from dskd.errors import InputError
from tests.data.file_writers import write_folder, write_shard, write_shards

Sample = dict[str, bytes]
Load = Callable[..., Dataset]


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = write_folder(tmp_path_factory.mktemp("one"), ["cat"], 1, 1)
    return (root / "train/cat/0.png").read_bytes()


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def call(patterns: Any = "*.tar", **options: Any) -> Dataset:
        options.setdefault("root", tmp_path)
        return load_dataset("webdataset", shards=patterns, cache_dir=tmp_path / "cache", **options)

    return call


@pytest.fixture
def samples(png: bytes) -> Callable[..., dict[str, Sample]]:
    """Five samples of each of two classes, and others."""

    def call(**more: Sample) -> dict[str, Sample]:
        few = {f"{number}": {"png": png, "cls": b"%d" % (number % 2)} for number in range(10)}
        return few | more

    return call


Samples = Callable[..., dict[str, Sample]]


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ({"cls": b"10\n"}, {}),
        ({"txt": b"10"}, {}),
        ({"json": b'{"label": 10, "other": 3}'}, {}),
        ({"json": b'{"label": "x", "what": "10"}', "cls": b"7"}, {"label_column": "what"}),
        ({"id": b"10", "cls": b"7"}, {"label_column": "id"}),
        ({"cls": b"10", "mask.png": b"no image", "JSON": b"{"}, {}),
        ({"cls": b"10", "jpg": b"no image"}, {"image_column": "png"}),
        ({"cls": b"10", "meta": b"a", "META": b"b", "txt": b"7"}, {}),
        ({"JSON": b'{"json": 10}', "cls": b"7"}, {"label_column": "json"}),
    ],
)
def test_image_and_label_are_found_by_their_suffixes(
    part: Sample, options: Mapping[str, str], png: bytes, load: Load, tmp_path: Path
) -> None:
    other = {key: one.replace(b"10", b"9") for key, one in part.items()}
    few = {f"{number}": {"png": png, **part} for number in range(5)}
    few |= {f"b/{number}": {"png": png, **other} for number in range(5)}
    write_shard(tmp_path / "a.tar", few)
    dataset = load("a.tar", **options)
    assert dataset.classes == ("9", "10")
    assert sorted([*dataset.train.names, *dataset.test.names])[4:6] == [
        "a.tar/4.png",
        "a.tar/b/0.png",
    ]
    assert dataset.train.labels.tolist() == [1] * 4 + [0] * 4


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"cls": b"1"}, "no image"),
        ({"png": b"", "cls": b"1"}, "empty"),
        ({"png": b"x", "jpg": b"x", "cls": b"1"}, "several images"),
        ({"png": b"x", "PNG": b"x", "cls": b"1"}, "several images"),
        ({"png": b"x", "cls": b"1", "CLS": b"0"}, "several labels"),
        ({"png": b"x", "json": b"{}", "Json": b"{}"}, "several labels"),
        ({"png": b"x"}, "no label"),
        ({"png": b"x", "cls": b" "}, "no label"),
        ({"png": b"x", "json": b"{}"}, "no label"),
        ({"png": b"x", "json": b"{"}, "damaged label"),
        ({"png": b"x", "json": b'{"label": [1]}'}, "damaged label"),
        ({"png": b"x", "cls": b"\xff"}, "damaged label"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named_with_its_reason(
    sample: Sample, reason: str, samples: Samples, load: Load, tmp_path: Path
) -> None:
    write_shard(tmp_path / "a.tar", samples(bad=sample))
    said = rf"1 image cannot be used \({reason}\) in .*\*\.tar: a\.tar/bad.*data=.*skip_bad"
    with pytest.raises(InputError, match=said):
        load()
    dataset = load(skip_bad=True)
    assert len(dataset.train) + len(dataset.test) == 10
    assert load(skip_bad=True).skipped == dataset.skipped  # from the index, too
    assert reason in dataset.skipped[0]


def test_a_key_that_comes_again_in_a_shard_is_refused(
    samples: Samples, load: Load, tmp_path: Path
) -> None:
    path = write_shard(tmp_path / "a.tar", samples())
    write_shard(path, {"3": samples()["3"]}, "a")
    with pytest.raises(InputError, match=r"\(listed several times\) in .*: a\.tar/3\.png"):
        load()


@pytest.mark.parametrize("damage", ["cut", "header", "garbage", "gzip"])
def test_a_damaged_shard_is_refused(
    damage: str, samples: Samples, load: Load, tmp_path: Path
) -> None:
    path = write_shard(tmp_path / "a.tar", samples())
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2 // 512 * 512 - 100]
    elif damage == "header":
        start = data.index(b"5.png")
        data[start : start + 3] = b"zzz"
    path.write_bytes({"garbage": b"x" * 2000, "gzip": gzip.compress(data)}.get(damage, bytes(data)))
    with pytest.raises(InputError, match=r"cannot read the shard .*a\.tar: .*; fetch it again"):
        load()


def test_names_of_shards_tell_the_split(samples: Samples, load: Load, tmp_path: Path) -> None:
    for name in ("x-train-0", "x-train-1", "x-val-0", "x_test_0"):
        write_shard(tmp_path / f"{name}.tar", samples())
    dataset = load()
    assert [len(one) for one in dataset.splits().values()] == [20, 10, 10]
    write_shard(tmp_path / "more.tar", samples())
    with pytest.raises(InputError, match=r"shard .*more\.tar has no split .train, val or test.,"):
        load()
    for folder in ("train", "validation"):
        (tmp_path / "sub" / folder).mkdir(parents=True)
        write_shard(tmp_path / "sub" / folder / "0.tar", samples())
    dataset = load(["sub/train", "sub/validation/*"])
    assert (len(dataset.train), len(dataset.test)) == (10, 10)
    assert dataset.train.names[0] == "train/0.tar/0.png"
    with pytest.raises(InputError, match="has no image of the split train; add some"):
        load("x_test_0.tar")


def test_the_index_is_made_once_and_again_when_a_shard_changes(
    samples: Samples, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[str]()

    def spied(shard: Any, options: Any) -> Any:
        read.append(shard.name)
        return read_samples(shard, options)

    monkeypatch.setattr(shards, "read_samples", spied)
    path = write_shard(tmp_path / "a.tar", samples())
    write_shard(tmp_path / "b.tar", samples())
    first = load("{a,b}.tar", loading="stream", workers=0)
    assert load("{a,b}.tar", loading="stream", workers=0).fingerprint() == first.fingerprint()
    assert read == ["a.tar", "b.tar"]
    write_shard(path, {"new": samples()["1"]}, "a")
    assert load("{a,b}.tar", loading="stream").fingerprint() != first.fingerprint()
    (index,) = (tmp_path / "cache").glob("shards-*.npz")
    index.write_bytes(b"damaged")
    load("{a,b}.tar", loading="stream")
    assert read == ["a.tar", "b.tar"] * 3


def test_patterns_without_a_shard_are_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no shard .*train-01\.tar; check data\.shards"):
        load("train-{01..02}.tar")
    with pytest.raises(
        InputError, match=r"data\.shards is missing: the data set 'webdataset' needs"
    ):
        load(None)
    with pytest.raises(InputError, match=r"data\.shards does nothing for folder; drop it"):
        load_dataset("folder", root=tmp_path, shards="a.tar")


def test_braces_are_those_of_a_shell() -> None:
    assert expand_braces("{a,b}-{9..11}.tar")[2:4] == ["a-11.tar", "b-9.tar"]
    assert expand_braces("x{000..002}") == ["x000", "x001", "x002"]
    assert set(expand_braces("x{a{1..2},c}")) == {"xa1", "xa2", "xc"}


def test_remote_shards_are_copied_once_and_read_without_the_network(
    samples: Samples, load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dskd")
    data = write_shard(tmp_path / "a.tar", samples()).read_bytes()
    files = fsspec.filesystem("memory")
    for name in ("train-0", "train-1", "val-0"):
        files.pipe(f"/photos/{name}.tar", data)
    patterns = ["memory://photos/train-{0..1}.tar", "memory://photos/val-*.tar"]
    dataset = load(patterns, root=None)
    assert (len(dataset.train), len(dataset.test)) == (20, 10)
    assert "copying 3 shards into" in caplog.text
    assert len(list((tmp_path / "cache/shards").glob("*.tar"))) == 3
    files.rm("/photos", recursive=True)
    names = ["memory://photos/train-{0..1}.tar", "memory://photos/val-0.tar"]
    assert load(names, root=None).fingerprint() == dataset.fingerprint()
    for gone in ("memory://photos/train-7.tar", "memory://photos/*.tar", "nothing://x/a.tar"):
        with pytest.raises(
            InputError, match=r"there is no shard|cannot read .*; check data\.shards"
        ):
            load(gone, root=None)


def test_compressed_shards_are_unpacked_once(samples: Samples, load: Load, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", samples())
    expected = load("a.tar").fingerprint()
    for name in ("a.tar.gz", "a.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
        assert load(name).fingerprint() == expected
    (tmp_path / "b.tar.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"cannot read .*b\.tar\.gz: "):
        load("b.tar.gz")
    assert not list((tmp_path / "cache/shards").glob("*.part"))


def labels_of(dataset: Dataset) -> dict[str, int]:
    parts = dataset.splits().values()
    return {name: int(one.labels[row]) for one in parts for row, name in enumerate(one.names)}


def swapped(samples: Mapping[str, Sample]) -> dict[str, Sample]:
    """The same samples with the other label of two; a tar file of them has the same size."""
    return {key: {**one, "cls": b"%d" % (one["cls"] == b"0")} for key, one in samples.items()}


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_compressed_shard_that_is_corrected_is_read_again(
    loading: str, samples: Samples, load: Load, tmp_path: Path
) -> None:
    path = tmp_path / "a.tar.gz"
    found = []
    for seconds, content in enumerate((samples(), swapped(samples()))):
        path.write_bytes(gzip.compress(write_shard(tmp_path / "a.tar", content).read_bytes()))
        os.utime(path, (seconds, seconds))
        found.append(labels_of(load("a.tar.gz", loading=loading)))
    assert found[1] == {name: 1 - label for name, label in found[0].items()}


def test_a_copy_that_is_fetched_again_is_read_again(
    samples: Samples, load: Load, tmp_path: Path
) -> None:
    files = fsspec.filesystem("memory")
    found: list[Dataset] = []
    for content in (samples(), swapped(samples())):
        data = write_shard(tmp_path / "a.tar", content).read_bytes()
        files.pipe("/corrected/a.tar", data)
        for copy in (tmp_path / "cache/shards").glob("*.tar"):
            copy.unlink()
        found.append(load("memory://corrected/a.tar", root=None, loading="stream", workers=0))
    first, second = map(labels_of, found)
    assert second == {name: 1 - label for name, label in first.items()}
    elsewhere = tmp_path / "other machine"  # whose copy has another time
    again = load_dataset(
        "webdataset",
        shards="memory://corrected/a.tar",
        cache_dir=elsewhere,
        loading="stream",
        workers=0,
    )
    assert again.fingerprint() == found[1].fingerprint()


@pytest.mark.parametrize(
    ("given", "root", "patterns"),
    [
        ("shards/train-{0000..0009}.tar", "shards", "train-{0000..0009}.tar"),
        ("a/*/b/{x,y}.tar", "a", "*/b/{x,y}.tar"),
        ("train.tar.gz", ".", "train.tar.gz"),
        ("/data/x.TAR", "/data", "x.TAR"),
        ("s3://bucket/x-{0..9}.tar", None, "s3://bucket/x-{0..9}.tar"),
    ],
)
def test_the_short_form_tells_shards_by_their_suffix(
    given: str, root: str | None, patterns: str
) -> None:
    expected = {"name": "webdataset", "shards": patterns} | ({"root": root} if root else {})
    assert data_settings(given) == expected
    recipe = load_by_labels("digits", overrides(data=given))
    assert recipe.data.shards == patterns
    assert recipe.plain()["data"]["shards"] == patterns


def test_a_folder_of_tar_files_is_one_of_shards(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", side=40)
    write_shards(root, tmp_path / "written", per_shard=5)
    settings = data_settings(tmp_path / "written")
    assert settings == {"name": "webdataset", "root": str(tmp_path / "written"), "shards": "*.tar"}
    assert label({"student": {"name": "resnet8"}, "data": settings}) == "resnet8-written"
    filled, _ = fill_in({"data": settings, "student": {"name": "resnet8"}})
    assert filled["data"]["size"] == 32
    assert len(find_shards(tmp_path, ["written", "written/train-*.tar"], tmp_path)) == 5
