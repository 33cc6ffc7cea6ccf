"""Manifests: tables of paths, labels and splits."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dskd.config.chosen import fill_in
from dskd.config.short_forms import data_settings, label
from dskd.data import Dataset, load_dataset
from dskd.data.image_sides import typical_side
from dskd.data.image_table import repeated
from dskd.data.path_list import PathList
from dskd.errors import InputError
from tests.data.file_writers import write_folder, write_manifest

pytestmark = pytest.mark.filterwarnings("error")
Load = Callable[..., Dataset]
ROW = {"path": "train/cat/0.png", "label": "cat", "split": "train"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "root", per_class=3, val_per_class=1)


@pytest.fixture
def load(root: Path, tmp_path: Path) -> Load:
    """Loads a manifest of the rows that are given, each by what differs from the usual ones."""

    def call(*more: Mapping[str, Any], name: str = "all.csv", **options: Any) -> Dataset:
        path = write_manifest(root, root / name, more)
        return load_dataset("manifest", root=path, cache_dir=tmp_path / "cache", **options)

    return call


def test_labels_that_are_numbers_are_sorted_by_size(root: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog", "owl")):
        (root / "train" / name).rename(root / "train" / str(9 + number))
    (root / "all.jsonl").write_text(
        "\n".join(
            json.dumps({"path": f"train/{one}/{index}.png", "label": one})
            for one in (11, 10, 9)
            for index in range(3)
        )
    )
    found = load_dataset("manifest", root=root / "all.jsonl", cache_dir=tmp_path, loading="stream")
    assert found.classes == ("9", "10", "11")
    assert found.train.names[0] in ("train/11/0.png", "train/11/1.png")
    assert int(found.train.labels[0]) == 2
    assert found.test_is_held_out
    assert "all.jsonl has no split val or test: 3 of the 9 training images" in found.notes[-1]


def test_names_of_columns_can_be_set(root: Path, tmp_path: Path) -> None:
    names = {"path": "file", "label": "what", "split": "fold"}
    path = write_manifest(root, root / "all.csv", columns=names)
    chosen = {"image_column": "file", "label_column": "what", "split_column": "fold"}
    found = load_dataset("manifest", root=path, cache_dir=tmp_path / "c", **chosen)  # type: ignore[arg-type]
    assert (len(found.train), len(found.test)) == (9, 3)
    for kind, name in (("image", "path"), ("label", "label")):
        own = {key: value for key, value in chosen.items() if not key.startswith(kind)}
        said = rf"all.csv has no column '{name}', but .*'what'.*set data\.{kind}_column"
        with pytest.raises(InputError, match=said):
            load_dataset("manifest", root=path, **own)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"data\.label_column does nothing for folder; drop it"):
        load_dataset("folder", root=root, label_column="what")


@pytest.mark.parametrize(
    ("changes", "reason", "shown"),
    [
        ({"path": "gone.png"}, "missing", r"gone\.png .line 14."),
        ({"path": "empty.png"}, "empty", r"empty\.png .line 14."),
        ({"path": ""}, "no path", "line 14"),
        ({"label": " "}, "no label", r"train/cat/0\.png .line 14."),
        ({"split": ""}, "no split", r"train/cat/0\.png .line 14."),
        ({"split": "holdout"}, "unknown split", r"train/cat/0\.png .line 14.: holdout"),
        ({}, "listed several times", r"train/cat/0\.png"),
        ({"path": "./train/dog/../cat/0.png"}, "listed several times", r"train/cat/0\.png"),
        ({"split": "val"}, "listed in several splits", r"train/cat/0\.png"),
        ({"label": "dog"}, "listed with different labels", r"train/cat/0\.png"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_reason(
    changes: dict[str, str], reason: str, shown: str, root: Path, load: Load
) -> None:
    (root / "empty.png").touch()
    said = rf"1 image cannot be used \({reason}\) in .*all\.csv: {shown}; .*data=.*skip_bad"
    with pytest.raises(InputError, match=said):
        load(ROW | changes)
    found = load(ROW | changes, skip_bad=True)
    lost = reason == "listed with different labels"
    assert (len(found.train), len(found.test)) == (9 - lost, 3)
    assert len(found.skipped) == 1
    assert reason in found.skipped[0]


def test_a_label_with_a_comma_needs_quotes(root: Path, tmp_path: Path) -> None:
    lines = [f"{row['path']},{row['label']},{row['split']}" for row in rows_in(root)]
    plain, quoted = (
        line.replace("cat,", name)
        for line, name in zip(
            [lines[0]] * 2, ("black, white cat,", '"black, white cat",'), strict=True
        )
    )
    for name, first in (("plain", plain), ("quoted", quoted)):
        text = "\n".join(["path,label,split", first, *lines[1:], ""])
        (root / f"{name}.csv").write_text(text)
    said = r"\(more fields than columns\) in .*plain\.csv: train/cat/0\.png \(line 2\); "
    with pytest.raises(InputError, match=said):
        load_dataset("manifest", root=root / "plain.csv", cache_dir=tmp_path)
    found = load_dataset("manifest", root=root / "quoted.csv", cache_dir=tmp_path)
    assert "black, white cat" in found.classes


def test_empty_fields_behind_the_columns_do_no_harm(root: Path, load: Load) -> None:
    expected = load().fingerprint()
    path = root / "all.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{line},," for line in lines)]))
    found = load_dataset("manifest", root=path, cache_dir=root.parent / "other")
    assert found.fingerprint() == expected


@pytest.mark.parametrize("chosen", [None, "fold"])
def test_blank_lines_before_the_first_row_do_not_hide_the_split(
    chosen: str | None, root: Path, tmp_path: Path
) -> None:
    columns = {"path": "path", "label": "label", "split": chosen or "split"}
    path = write_manifest(root, root / "all.jsonl", columns=columns)
    path.write_text(f"\n \n{path.read_text()}")
    found = load_dataset("manifest", root=path, cache_dir=tmp_path / "cache", split_column=chosen)
    assert not found.test_is_held_out
    assert (len(found.train), len(found.test)) == (9, 3)


def test_a_split_in_some_rows_of_json_is_refused(root: Path, tmp_path: Path) -> None:
    rows = rows_in(root)
    few = [{key: one for key, one in rows[0].items() if key != "split"}]
    for first, second, said in (
        (few, rows[1:], r"all\.jsonl, line 2 has 'split', and the first row has not; give it to"),
        (rows[1:], few, r"1 image cannot be used \(no split\) .*train/cat/0\.png \(line 12\)"),
    ):
        lines = [json.dumps(row) for row in (*first, *second)]
        (root / "all.jsonl").write_text("\n".join(lines))
        with pytest.raises(InputError, match=said):
            load_dataset("manifest", root=root / "all.jsonl", cache_dir=tmp_path)


def test_reasons_are_counted_and_five_rows_are_named(load: Load) -> None:
    gone = [ROW | {"path": f"gone{number}.png"} for number in range(6)]
    said = r"7 images cannot be used \(missing: 6, no label: 1\) .*gone4.png .line 18. and 2 more"
    with pytest.raises(InputError, match=said):
        load(*gone, ROW | {"label": ""})


def test_images_that_do_not_decode_are_left_out_as_in_a_folder(root: Path, load: Load) -> None:
    (root / "train/dog/1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"train/dog/1\.png.*skip_bad"):
        load()
    assert load(skip_bad=True).skipped == ("train/dog/1.png: damaged",)


def test_classes_that_only_the_test_split_has_are_refused(root: Path, load: Load) -> None:
    Image.new("RGB", (16, 16)).save(root / "elk.png")
    with pytest.raises(InputError, match=r"split val of .* has the classes elk, which train lacks"):
        load(ROW | {"path": "elk.png", "label": "elk", "split": "val"})


def test_two_validation_splits_are_refused(root: Path, load: Load) -> None:
    Image.new("RGB", (16, 16)).save(root / "new.png")
    with pytest.raises(InputError, match="images of the split val and images of the split valid"):
        load({"path": "new.png", "label": "cat", "split": "valid"})


def test_a_manifest_without_training_images_is_refused(root: Path, tmp_path: Path) -> None:
    path = root / "all.csv"
    path.write_text("path,label,split\nval/cat/0.png,cat,val\n")
    with pytest.raises(InputError, match=r"all\.csv has no image of the split train; add some"):
        load_dataset("manifest", root=path)
    path.write_text("path,label,split\n")
    with pytest.raises(InputError, match=r"all\.csv holds no image; add some"):
        load_dataset("manifest", root=path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"path,label\n\xff.png,cat\n", r"a\.csv is not UTF-8"),
        ("a.csv", b"path,label,label\n", "two columns 'label'; rename one"),
        ("a.csv", b"", r"a\.csv has no column 'path'"),
        ("a.csv", b'path,label\n"' + b"x" * 200_000, r"a\.csv, line 2: field larger than"),
        (
            "a.csv",
            b'path,label\na.png,"tall\nb.png,cat\nc.png,"small\n',
            "line 2: .*; put quotes around the whole",
        ),
        (
            "a.csv",
            b'path,label\na.png,cat\nb.png,"tall\nc.png,cat\n',
            "line 3: .*; put quotes around the whole",
        ),
        ("a.jsonl", b'{"path": "a", "label": "b"}\n[1]\n', r"line 2: \[1\] is no JSON object"),
        ("a.jsonl", b"{\n", r"a\.jsonl, line 1: .*; write one JSON object"),
        ("a.jsonl", b'{"path": ["a"], "label": 1}', r"line 1: \['a'\] is no text or number"),
        ("a.parquet", b"PAR1 and so on", r"cannot read .*a\.parquet: "),
        ("a.txt", b"", r"a\.txt is no manifest; give a file \.csv, \.tsv"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_line(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        load_dataset("manifest", root=tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["path", "label"])
@pytest.mark.parametrize("value", [["a", "b"], {"bytes": b"x", "path": "a"}, b"cat"])
def test_a_parquet_column_that_is_no_text_is_refused(
    column: str, value: Any, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {"path": "a.png", "label": "cat", column: value}
    table = pytest.importorskip("pyarrow").Table.from_pylist([row])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"the column '{column}' has the type .*text or numbers"):
        load_dataset("manifest", root=tmp_path / "a.parquet")


def test_semicolons_spaces_and_a_byte_order_mark_are_read(root: Path, tmp_path: Path) -> None:
    lines = [f"{row['path']}; {row['label']} ;{row['split']}" for row in rows_in(root)]
    text = "\n".join(["\ufeffpath; label;split", *lines, "", ""])
    (root / "all.csv").write_text(text)
    found = load_dataset("manifest", root=root / "all.csv", cache_dir=tmp_path / "cache")
    assert found.classes == ("cat", "dog", "owl")


def rows_in(root: Path) -> Sequence[Mapping[str, str]]:
    with write_manifest(root, root / "other.csv").open() as file:
        return list(csv.DictReader(file))


def test_other_labels_or_another_image_are_read_again(root: Path, load: Load) -> None:
    first = load()
    assert load().fingerprint() == first.fingerprint()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / "train/cat/0.png")
    other = load()
    assert other.fingerprint() != first.fingerprint()
    path = root / "all.csv"
    path.write_text(path.read_text().replace("train/cat/1.png,cat", "train/cat/1.png,dog"))
    again = load_dataset("manifest", root=path, cache_dir=root.parent / "cache")
    assert int(again.train.labels[1]) == 1


def test_the_short_form_tells_a_manifest_by_its_suffix(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    path = write_manifest(root, root / "flowers.CSV")
    settings = data_settings("flowers.CSV")
    assert settings == {"name": "manifest", "root": "flowers.CSV"}
    assert label({"student": {"name": "resnet8"}, "data": settings}) == "resnet8-flowers"
    with pytest.raises(InputError, match=r"data: gone\.csv is not there; check the path"):
        data_settings("gone.csv")
    filled, _ = fill_in({"data": settings, "student": {"name": "resnet8"}})
    assert filled["data"]["size"] == 32  # a step, since the images have 16 pixels
    assert typical_side({"name": "manifest", "root": path}) == 16


def test_names_that_occur_several_times_are_found_among_many() -> None:
    names = [f"images/{number}.png" for number in range(2000)]
    assert repeated(PathList(names)) == []
    assert repeated(PathList([*names, names[7], names[3], names[7]])) == [
        [3, 2001],
        [7, 2000, 2002],
    ]


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_a_path_that_no_file_can_have_is_missing(root: Path, tmp_path: Path) -> None:
    path = write_manifest(root, root / "all.jsonl")
    with path.open("a") as file:
        file.write(json.dumps({"path": "a\0b", "label": "cat", "split": "train"}) + "\n")
        file.write(json.dumps({"path": "\ud800", "label": "cat", "split": "train"}) + "\n")
    with pytest.raises(InputError, match=r"2 images cannot be used \(missing: 2\)") as caught:
        load_dataset("manifest", root=path, cache_dir=tmp_path / "cache")
    str(caught.value).encode()
