"""Data sets of the library ``datasets``."""

from __future__ import annotations

import importlib
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dskd.config.chosen import fill_in
from dskd.config.recipe import load_by_labels
from dskd.config.schema import DataSettings
from dskd.config.short_forms import data_settings, label, overrides
from dskd.data import Dataset, load_dataset
from dskd.data.file_split import FileSplit
from dskd.data.hf import HFSplits, _facts_of_paths, _not_decoded, as_hf
from dskd.data.path_list import PathList
from dskd.data.read_options import read_options
from dskd.engine.build_data import load_data
from dskd.engine.given_data import split_data
from dskd.errors import InputError
from dskd.settings import validate
from tests.data.file_writers import write_folder, write_hf

pytestmark = pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed")


@pytest.fixture(scope="module")
def datasets() -> Any:
    """The library, which only these tests import."""
    return importlib.import_module("datasets")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def given(root: Path) -> Any:
    return write_hf(root)


def read(given: Any, tmp_path: Path, **options: Any) -> Dataset:
    splits = as_hf(given)
    assert splits is not None
    size = options.pop("size", 12)
    return splits.read(read_options(size, options.pop("test_split", None), **options), tmp_path)


@pytest.mark.parametrize("labels", [["9", "10", "9"], [10, 9, 10]])
def test_labels_without_names_are_sorted(labels: list[Any], given: Any, tmp_path: Path) -> None:
    table = given["train"].remove_columns("label").add_column("labels", labels * 4)
    dataset = read(table, tmp_path)
    assert dataset.classes == ("9", "10")
    assert dataset.test_is_held_out


def test_columns_are_chosen_where_there_are_several(
    datasets: Any, given: Any, tmp_path: Path
) -> None:
    train = given["train"]
    kind = datasets.ClassLabel(names=["a", "b"])
    twice = train.add_column("coarse", [0, 1] * 6).cast_column("coarse", kind)
    with pytest.raises(InputError, match=r"the label columns label, coarse among .*label_column"):
        read(twice, tmp_path)
    assert read(twice, tmp_path, label_column="coarse").classes == ("a", "b")
    plain = train.rename_column("image", "photo")
    assert len(read(plain, tmp_path).train) == 9
    assert len(read(plain, tmp_path, image_column="photo").train) == 9
    for chosen, said in (
        ({"image_column": "x"}, r"has no column 'x', but .*; check data\.image_column"),
        ({"image_column": "label"}, "the column 'label' has no images"),
        ({"label_column": "image"}, r"the column 'image' .* has no classes but .*label_column"),
    ):
        with pytest.raises(InputError, match=said):
            read(given, tmp_path, **chosen)
    with pytest.raises(InputError, match=r"has no image column among \['label'\]"):
        read(train.remove_columns("image"), tmp_path)


def test_an_object_is_streamed_to_the_images_that_it_has_in_memory(given: Any) -> None:
    form = {"size": 12, "workers": 0}
    streamed, memory = (
        load_data(validate(DataSettings, {**values, **form, "loading": loading}), splits)
        for loading in ("stream", "memory")
        for values, splits in [split_data(given)]
    )
    assert isinstance(streamed.train, FileSplit)
    for name, split in streamed.splits().items():
        assert torch.equal(split.images, memory.splits()[name].images)
        assert torch.equal(split.labels, memory.splits()[name].labels)


def test_labels_of_an_object_are_not_ignored_without_a_word(given: Any) -> None:
    values, splits = split_data(given)
    with pytest.raises(InputError, match=r"data\.labels does not apply to images given in Python"):
        load_data(validate(DataSettings, {**values, "labels": "none"}), splits)


def test_other_splits_and_splits_without_labels_are_left_out_with_a_note(
    datasets: Any, given: Any, tmp_path: Path
) -> None:
    hidden = given["validation"].cast_column("label", datasets.Value("int64"))
    hidden = hidden.map(lambda row: {"label": -1}).cast(given["train"].features)
    dataset = read(datasets.DatasetDict({**given, "test": hidden, "extra": hidden}), tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (12, 6)
    assert dataset.notes == (
        "ignored: the splits extra of <DatasetDict>",
        "the split test has no labels and is left out",
    )
    some = datasets.concatenate_datasets([given["train"], hidden])
    with pytest.raises(InputError, match=r"6 images cannot be used \(no label: 6\) .*: train/12"):
        read(some, tmp_path)
    assert len(read(some, tmp_path, skip_bad=True).skipped) == 6


def test_selected_rows_and_files_by_path_are_read(
    datasets: Any, root: Path, tmp_path: Path
) -> None:
    paths = [
        str(root / f"train/{name}/{number}.png") for name in ("owl", "cat") for number in range(4)
    ]
    whole = datasets.Dataset.from_dict({"image": paths, "label": ["owl"] * 4 + ["cat"] * 4})
    whole = whole.cast_column("image", datasets.Image()).select([7, 6, 5, 4, 3, 2, 1, 0])
    dataset = read(whole.with_format("torch"), tmp_path, test_split=0.25)
    expected = load_dataset("folder", root=root, size=12, cache_dir=tmp_path)
    assert dataset.train.labels.tolist() == [0] * 3 + [1] * 3
    assert not dataset.names_are_files
    image = dataset.train.images[dataset.train.names.index("train/0")]
    assert (image == expected.train.images[3]).all()


def test_what_cannot_be_read_is_refused(datasets: Any, given: Any, tmp_path: Path) -> None:
    train = given["train"]
    transformed = train.with_transform(lambda batch: batch)
    named = datasets.ClassLabel(names=["x", "y", "z"])
    other = given["validation"].cast_column("label", named)
    for wrong, said in (
        (transformed, r"has a transform, .*dataset\.with_format\(None\), and use data\.augment"),
        (datasets.DatasetDict(a=train, b=train), "has the splits a, b, and none is called train"),
        (datasets.DatasetDict(train=train, test=other), "have different classes in 'label'"),
        (datasets.DatasetDict(train=train, val=train, valid=train), "one validation split is need"),
    ):
        with pytest.raises(InputError, match=said):
            read(wrong, tmp_path)
    with pytest.raises(InputError, match=r"IterableDataset> can only be iterated; .*streaming"):
        split_data(train.to_iterable_dataset())
    with pytest.raises(InputError, match=r"data\.test: a Dataset of the library datasets"):
        split_data({"dataset": train, "test": [1]})
    with pytest.raises(InputError, match="dataset has a split validation; drop validation"):
        split_data({"dataset": given, "validation": train})


def test_a_folder_of_parquet_files_is_read_with_its_types(
    given: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "written").mkdir()
    for name, split in given.items():
        split.to_parquet(tmp_path / "written" / f"{name}-00000-of-00001.parquet")
    options: dict[str, Any] = {"size": 12, "cache_dir": tmp_path / "cache"}
    found = load_dataset("hf", root=tmp_path / "written", **options)
    expected = load_dataset("folder", root=root, **options)
    assert found.classes == expected.classes
    assert (found.train.images == expected.train.images).all()
    assert (found.test.labels == expected.test.labels).all()


def test_folders_and_names_have_a_short_form(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given.save_to_disk("saved")
    given["train"].save_to_disk("one")
    for name in ("saved", "one"):
        for text in (name, f"hf/{name}"):
            assert data_settings(text) == {"name": "hf", "root": name}
    settings = data_settings("hf/uoft-cs/cifar10:plain")
    assert settings == {"name": "hf", "hub": "uoft-cs/cifar10:plain"}
    assert label({"student": {"name": "a"}, "data": settings}) == "a-uoft-cs_cifar10:plain"
    assert load_by_labels("digits", overrides(data="hf/a/b")).data.hub == "a/b"
    filled, _ = fill_in({"data": data_settings("saved"), "student": {"name": "resnet8"}})
    assert filled["data"]["size"] == 32


def test_a_name_without_a_network_is_one_line(
    datasets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise ConnectionError(f"Couldn't reach {names[0]}\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        InputError, match=r"cannot read a/b: .*; check the name and the network"
    ) as e:
        load_dataset("hf", hub="a/b")
    assert "\n" not in str(e.value)
    for options in ({}, {"hub": "a/b", "root": "."}):
        with pytest.raises(InputError, match=r"either data\.root, a folder, or data\.hub, a name"):
            load_dataset("hf", **options)  # type: ignore[arg-type]


def test_without_the_library_a_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r"needs the package datasets; pip install 'dskd\[datasets\]'"
    ):
        load_dataset("hf", hub="a/b")
    assert as_hf([1]) is None


@pytest.fixture
def by_path(datasets: Any, root: Path, given: Any, tmp_path: Path) -> Any:
    """Images that are files outside the data set, as the library's own ``imagefolder`` has them."""
    shutil.copytree(root / "train", tmp_path / "files")
    paths = sorted((tmp_path / "files").glob("*/*.png"))
    columns = {"image": [*map(str, paths)], "label": [path.parent.name for path in paths]}
    return datasets.Dataset.from_dict(columns, features=given["train"].features)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_file_that_is_replaced_at_its_path_is_read_again(
    loading: Any, by_path: Any, given: Any, tmp_path: Path
) -> None:
    splits = HFSplits({"train": by_path, "validation": given["validation"]}, "mixed")
    options = read_options(16, None, loading=loading, workers=0)
    first, same = (splits.read(options, tmp_path / "cache") for _ in range(2))
    assert torch.equal(first.train.images, same.train.images)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "files/dog/1.png")
    again = splits.read(options, tmp_path / "cache")
    changed = (again.train.images != read(given, tmp_path, size=16).train.images).flatten(1).any(1)
    assert changed.nonzero().tolist() == [[5]]
    (tmp_path / "files/cat/1.png").unlink()
    with pytest.raises(InputError, match=r"cannot read train/1 of mixed: .*1\.png"):
        splits.read(options, tmp_path / "cache")


def test_only_files_outside_the_data_set_have_facts(by_path: Any, given: Any) -> None:
    def facts(one: Any) -> Any:
        names = PathList(f"train/{row}" for row in range(len(one)))
        return _facts_of_paths({"train": _not_decoded(one, "image")}, "image", names)

    assert facts(given["train"]).shape == (12, 0)
    turned = by_path.select(range(11, -1, -1))
    assert facts(turned).tolist() == facts(by_path)[::-1].tolist()
    assert (facts(by_path) > 0).all()


def test_damaged_rows_are_named(datasets: Any, given: Any, tmp_path: Path) -> None:
    rows = [{"bytes": b"x", "path": None}, {"bytes": b"", "path": None}, None]
    table = datasets.Dataset.from_dict(
        {"image": rows, "label": ["a", "b", "a"]},
        features=datasets.Features(image=datasets.Image(), label=datasets.Value("string")),
    )
    both = datasets.concatenate_datasets(
        [table, given["train"].cast_column("label", datasets.Value("string"))]
    )
    said = (
        r"3 images cannot be used \(damaged: 1, empty: 2\) in <Dataset>: train/0, train/1, train/2"
    )
    with pytest.raises(InputError, match=said):
        read(both, tmp_path)
    assert isinstance(as_hf(both), HFSplits)
