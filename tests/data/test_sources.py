"""One contract for all sources of your own images, with the same small images in each."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dskd.config import recipe
from dskd.config.schema import DataSettings
from dskd.data import Dataset, load_dataset
from dskd.data.epoch_plan import draw_plan
from dskd.engine import run
from dskd.engine.build_data import load_data
from dskd.engine.given_data import split_data
from dskd.errors import InputError, Stopped
from dskd.storage.weights import read_weights
from tests.builders import stop_at
from tests.data.file_writers import (
    rows_of_folder,
    write_folder,
    write_hf,
    write_manifest,
    write_shards,
)

CPU = torch.device("cpu")
Settings = dict[str, Any]
WRITERS: dict[str, Callable[[Path, Path], Settings]] = {}


def source(writer: Callable[[Path, Path], Settings]) -> Callable[[Path, Path], Settings]:
    """Notes a function that writes the images of a folder as a source, and returns its settings."""
    WRITERS[writer.__name__] = writer
    return writer


@source
def csv(root: Path, folder: Path) -> Settings:
    return {"name": "manifest", "root": write_manifest(root, root / "all.csv")}


@source
def tsv(root: Path, folder: Path) -> Settings:
    return {"name": "manifest", "root": write_manifest(root, root / "all.tsv")}


@source
def jsonl(root: Path, folder: Path) -> Settings:
    return {"name": "manifest", "root": write_manifest(root, root / "all.jsonl")}


@source
def parquet(root: Path, folder: Path) -> Settings:
    return {"name": "manifest", "root": write_manifest(root, root / "all.parquet")}


@source
def webdataset(root: Path, folder: Path) -> Settings:
    write_shards(root, folder, per_shard=5)
    return {"name": "webdataset", "root": folder, "shards": "*.tar"}


@source
def hf(root: Path, folder: Path) -> Settings:
    write_hf(root).save_to_disk(folder)
    return {"name": "hf", "root": folder}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), per_class=4, val_per_class=2, side=20)


@pytest.fixture(scope="module")
def settings(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Settings]:
    """The settings of a source, which is written once."""
    written: dict[str, Settings] = {}

    def call(kind: str) -> Settings:
        if kind not in written:
            written[kind] = WRITERS[kind](images, tmp_path_factory.mktemp(kind))
        return written[kind]

    return call


def same(one: Dataset, other: Dataset) -> bool:
    splits = one.splits()
    return all(
        torch.equal(splits[name].images, split.images)
        and torch.equal(splits[name].labels, split.labels)
        for name, split in other.splits().items()
    )


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_source_gives_the_images_of_the_class_folders(
    kind: str, loading: Any, images: Path, settings: Callable[[str], Settings], tmp_path: Path
) -> None:
    options = {"size": 12, "channels": 1, "loading": loading, "cache_dir": tmp_path, "workers": 0}
    expected = load_dataset("folder", root=images, **options)
    found = load_dataset(**settings(kind), **options)
    again = load_dataset(**settings(kind), **options)
    assert found.classes == expected.classes
    assert (found.mean, found.std) == (expected.mean, expected.std)
    assert not found.test_is_held_out
    assert same(found, expected)
    assert same(again, expected)
    assert found.fingerprint() == again.fingerprint()
    plan = draw_plan(1, 2, 12, 2, True)
    for one, other in zip(
        found.train.loader(CPU).batches(plan, 5, 1, 1, 2),
        expected.train.loader(CPU).batches(plan, 5, 1, 1, 2),
        strict=True,
    ):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    parts: Settings = {"classes": ["owl", "cat"], "fraction": 0.5, "val_fraction": 0.25}
    part = load_dataset(**settings(kind), **options, **parts)
    assert same(part, load_dataset("folder", root=images, **options, **parts))


@pytest.mark.parametrize("kind", WRITERS)
def test_files_are_read_in_another_process(
    kind: str, settings: Callable[[str], Settings], tmp_path: Path
) -> None:
    options: Settings = {"size": 12, "loading": "stream", "cache_dir": tmp_path}
    split = load_dataset(**settings(kind), **options, workers=0).train
    copy = pickle.loads(pickle.dumps(split.files))  # type: ignore[attr-defined]
    assert copy.read(split.names[7]) == split.files.read(split.names[7])  # type: ignore[attr-defined]
    batches = load_dataset(**settings(kind), **options, workers=2).train.loader(CPU).in_order(5)
    assert torch.equal(torch.cat([images for images, _ in batches]), split.images)


@pytest.mark.parametrize("kind", ["csv", "webdataset", "hf"])
def test_without_a_test_split_the_same_images_are_held_out(
    kind: str, images: Path, tmp_path: Path
) -> None:
    root = tmp_path / "bare"
    (root / "train").parent.mkdir()
    (root / "train").symlink_to(images / "train")
    options: Settings = {"size": 12, "cache_dir": tmp_path / "cache"}
    found = load_dataset(**WRITERS[kind](root, tmp_path / "written"), **options)
    expected = load_dataset("folder", root=root, **options)
    assert found.test_is_held_out
    assert same(found, expected)
    assert "3 of the 12 training images are held out (data.test_split=0.2)" in found.notes[-1]
    own = WRITERS[kind](root, tmp_path / "other")
    three = load_dataset(**own, val_fraction=0.25, test_split=0.25, **options)
    assert [len(three.splits()[name]) for name in ("training", "validation", "test")] == [6, 3, 3]


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize("kind", ["csv", "webdataset", "hf"])
def test_images_that_cannot_be_used_are_left_out_on_demand(
    kind: str, loading: Any, tmp_path: Path
) -> None:
    root = write_folder(tmp_path / "root", side=20)
    (root / "train/dog/1.png").write_bytes(b"no image")
    written = WRITERS[kind](root, tmp_path / "written")
    options: Settings = {"size": 12, "cache_dir": tmp_path / "cache", "loading": loading}
    with pytest.raises(InputError, match=r"cannot decode .*leave it out with data=.*skip_bad"):
        load_dataset(**written, **options)
    found = load_dataset(**written, **options, skip_bad=True)
    assert (len(found.train), len(found.test)) == (11, 6)
    assert found.skipped[0].endswith(": damaged")
    assert same(found, load_dataset("folder", root=root, **options, skip_bad=True))


def test_images_of_few_levels_are_told_after_a_failed_attempt_too(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", side=20)
    for path in root.rglob("*.png"):
        levels = np.asarray(Image.open(path).convert("L"), np.uint16) * 16  # 12 bits
        Image.fromarray(levels).save(path)
    (root / "train/dog/1.png").write_bytes(b"no image")
    options: Settings = {"size": 12, "cache_dir": tmp_path / "cache", "loading": "memory"}
    with pytest.raises(InputError, match="cannot decode"):
        load_dataset("folder", root=root, **options)
    notes = load_dataset("folder", root=root, **options, skip_bad=True).notes
    anew = options | {"cache_dir": tmp_path / "other"}
    expected = load_dataset("folder", root=root, **anew, skip_bad=True).notes
    assert notes == expected
    assert any("16" in note and "bit" in note for note in notes), notes


def plan(settings: Settings, out: Path, *overrides: str) -> Any:
    values = {"size": 16, "augment": "strong", "workers": 0} | settings
    given = json.dumps(
        {key: value if isinstance(value, int) else str(value) for key, value in values.items()}
    )
    own = [f"data={given}", "train.epochs=1", "train.batch_size=5", "train.device=cpu"]
    return recipe.load_by_labels("digits", [*own, f"out={out}", *overrides])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "webdataset", "hf"])
def test_the_student_is_that_of_the_class_folders_also_after_a_stop(
    kind: str,
    images: Path,
    settings: Callable[[str], Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DSKD_CACHE", str(tmp_path / "cache"))
    streamed = {"loading": "stream"}
    run.train(plan({"name": "folder", "root": images, **streamed}, tmp_path / "folder"))
    with monkeypatch.context() as patch:
        stop_at(patch, epoch=0, step=1)
        with pytest.raises(Stopped):
            run.train(plan(settings(kind) | streamed, tmp_path / kind))
    run.train(plan(settings(kind) | streamed, tmp_path / kind, "data.workers=1"), resume=True)
    first, second = (
        read_weights(tmp_path / one / "student.safetensors") for one in ("folder", kind)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_data_sets_given_in_python_are_those_of_the_folder(images: Path, tmp_path: Path) -> None:
    given = write_hf(images)
    expected = load_dataset("folder", root=images, size=12, cache_dir=tmp_path)
    whole = {"dataset": given["train"], "test": given["validation"], "size": 12}
    for data, name in ((given, "<DatasetDict>"), (whole, "<Dataset>")):
        values, splits = split_data(data)
        assert values["name"] == name
        found = load_data(DataSettings(**{"size": 12, "cache_dir": tmp_path} | values), splits)
        assert same(found, expected)
    with pytest.raises(InputError, match=r"data\.hub does not apply to images given in Python"):
        load_data(DataSettings(name="<Dataset>", hub="x"), splits)


def test_rows_of_a_folder_are_in_its_order(images: Path) -> None:
    expected = load_dataset("folder", root=images, loading="stream", workers=0)
    rows = [row["path"] for row in rows_of_folder(images) if row["split"] == "train"]
    assert list(expected.train.names) == rows


def test_tar_files_have_the_format_of_webdataset(images: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("webdataset")
    write_shards(images, tmp_path, per_shard=5)
    found = list(library.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False))
    assert [sample["cls"] for sample in found] == [b"cat"] * 4 + [b"dog"]
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        assert tar.getnames()[:2] == ["000000.png", "000000.cls"]
    assert io.BytesIO(found[0]["png"]).read(4) == b"\x89PNG"
