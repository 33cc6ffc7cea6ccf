"""Reports about image folders: what is left out, replaced or misread without a word."""

from __future__ import annotations

import os
import struct
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dskd
from dskd.data import Dataset, image_decoding, image_files, load_dataset
from dskd.errors import InputError
from dskd.models.zoo import build
from dskd.storage.weights import write_weights


def write(path: Path, level: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of four images in train and of two in val."""
    for part, count in (("train", 4), ("val", 2)):
        for name in ("a", "b"):
            for number in range(count):
                write(tmp_path / "p" / part / name / f"{number}.png", 10 * number)
    return tmp_path / "p"


def load(root: Path, **options: Any) -> Dataset:
    return load_dataset("folder", root=root, cache_dir=root.parent / "cache", **options)


def notes(root: Path, **options: Any) -> str:
    return " | ".join(load(root, **options).notes)


def test_images_in_folders_within_a_class_are_taken(root: Path) -> None:
    for number in range(5):
        write(root / "train" / "a" / "2024-05-01" / "camera 2" / f"{number}.png")
    dataset = load(root)
    assert dataset.train.labels.bincount().tolist() == [9, 4]
    assert "train/a/2024-05-01/camera 2/0.png" in dataset.train.names
    assert dataset.notes == ()


def test_a_link_that_leads_back_to_a_folder_above_ends(root: Path) -> None:
    (root / "train" / "a" / "again").symlink_to(root / "train" / "a", target_is_directory=True)
    (root / "train" / "b" / "all").symlink_to(root, target_is_directory=True)
    assert len(load(root).train) == 8


def break_three(root: Path) -> None:
    (root / "train" / "a" / "1.png").write_bytes(b"")
    (root / "train" / "b" / "2.png").write_bytes(b"<html>404</html>")
    whole = (root / "val" / "b" / "1.png").read_bytes()
    (root / "val" / "b" / "1.png").write_bytes(whole[: len(whole) // 2])


def test_all_broken_files_are_named_at_once(root: Path) -> None:
    break_three(root)
    with pytest.raises(InputError) as caught:
        load(root)
    message = str(caught.value)
    assert message.startswith("3 images cannot be used (empty: 1, damaged: 2) in ")
    for name in ("train/a/1.png", "train/b/2.png", "val/b/1.png"):
        assert name in message
    assert message.endswith('or leave them out with data={..., "skip_bad": True}')
    assert "\n" not in message


def test_of_many_broken_files_five_are_named(root: Path) -> None:
    for number in range(4, 12):
        (root / "train" / "a" / f"{number}.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"train/a/5\.png, train/a/6\.png.* and 3 more; replace"):
        load(root)


def test_dangling_links_and_other_things_are_counted(root: Path) -> None:
    (root / "train" / "a" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "train" / "a" / "pipe.png")
    with pytest.raises(InputError, match="dangling link: 1"):
        load(root)
    assert "cannot be used" in notes(root, skip_bad=True)


def test_broken_files_are_left_out_where_this_is_asked_for_and_listed_in_the_run(
    root: Path, tmp_path: Path
) -> None:
    break_three(root)
    dataset = load(root, skip_bad=True)
    assert len(dataset.train) == 6
    assert len(dataset.test) == 3
    assert dataset.train.names == (
        *("train/a/0.png", "train/a/2.png", "train/a/3.png"),
        *("train/b/0.png", "train/b/1.png", "train/b/3.png"),
    )
    assert "3 images cannot be used (empty: 1, damaged: 2) and left out" in notes(
        root, skip_bad=True
    )
    out = tmp_path / "run"
    settings = {"name": "folder", "root": str(root), "size": 8, "skip_bad": True}
    small = {"epochs": 1, "batch_size": 4}
    dskd.train(student="resnet8", data=settings, train=small, out=out)
    assert (out / "skipped_images.txt").read_text().splitlines() == [
        "train/a/1.png: empty",
        "train/b/2.png: damaged",
        "val/b/1.png: damaged",
    ]


def test_what_was_decoded_before_a_broken_file_is_not_decoded_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_three(root)
    with pytest.raises(InputError):
        load(root)
    read: list[str] = []
    real = image_files.read_image

    def counted(files: Any, name: str, *more: Any) -> Any:
        read.append(name)
        return real(files, name, *more)

    monkeypatch.setattr(image_decoding, "read_image", counted)
    for name in ("train/a/1.png", "train/b/2.png", "val/b/1.png"):
        write(root / name, 77)
    dataset = load(root)
    assert set(read) == {"train/a/0.png", "train/a/1.png", "train/b/2.png", "val/b/1.png"}
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 77, 20, 30, 0, 10, 77, 30]
    assert not list((root.parent / "cache").glob("unfinished-*"))


def exif(*entries: bytes) -> bytes:
    table = struct.pack("<IH", 8, len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return b"Exif\0\0II*\0" + table


@pytest.mark.parametrize(
    "other",
    [
        struct.pack("<HHI4s", 0x011A, 7, 4, b"\1\2\3\4"),  # a resolution of the wrong type
        struct.pack("<HHI4s", 0x8769, 2, 4, b"abc\0"),  # a pointer that is a text
        struct.pack("<HHII", 0x0201, 4, 1, 2**31),  # a thumbnail beyond the file
    ],
)
def test_one_malformed_exif_tag_costs_nothing(root: Path, other: bytes) -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20] = 255  # the left half is white, and comes to the top
    turned = struct.pack("<HHII", 0x0112, 3, 1, 6)
    file = root / "train" / "a" / "9.jpg"
    Image.fromarray(image).save(file, quality=95, exif=exif(turned, other))
    found = load(root, size=20).train.images[4].float().mean(0)
    assert found[:5].mean() > 200
    assert found[-5:].mean() < 50


def write_deep(root: Path, levels: tuple[int, int]) -> None:
    for part in ("train", "val"):
        for name, level in zip("ab", levels, strict=True):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(2):
                values = np.full((8, 8), level + number, np.uint16)
                Image.fromarray(values).save(folder / f"{number}.png")


def test_twelve_bits_in_sixteen_are_noted_and_their_range_can_be_given(tmp_path: Path) -> None:
    write_deep(tmp_path / "p", (800, 1000))
    assert "values up to 1001 of 65535" in notes(tmp_path / "p")
    assert "set data.value_range=[0,1001]" in notes(tmp_path / "p")
    spread = load(tmp_path / "p", value_range=(0, 4095))
    assert spread.notes == ()
    assert spread.train.images[:, 0, 0, 0].tolist() == [50, 50, 62, 62]


def test_images_with_all_sixteen_bits_need_no_note(tmp_path: Path) -> None:
    write_deep(tmp_path / "p", (800, 40_000))
    dataset = load(tmp_path / "p")
    assert dataset.notes == ()
    assert dataset.train.images[-1, 0, 0, 0] == 40_001 >> 8


def test_a_range_serves_floats_and_bytes_too(root: Path) -> None:
    for number in range(2):
        image = Image.fromarray(np.full((8, 8), 0.25 * number, np.float32))
        image.save(root / "train" / "a" / f"{number}.tif")
    with pytest.raises(InputError, match=r"floats without data\.value_range: 2"):
        load(root)
    images = load(root, value_range=(0, 0.5)).train
    values = dict(zip(images.names, images.images[:, 0, 0, 0].tolist(), strict=True))
    assert values["train/a/1.tif"] == 128
    assert values["train/a/1.png"] == 255  # 10, far above 0.5
    stretched = load(root.parent / "p", value_range=(0, 20), skip_bad=True).train
    of_bytes = dict(zip(stretched.names, stretched.images[:, 0, 0, 0].tolist(), strict=True))
    assert of_bytes["train/b/1.png"] == 128


def test_every_format_that_pillow_reads_is_an_image(root: Path) -> None:
    Image.init()
    for suffix in (".avif", ".jp2", ".tga", ".dds", ".ico"):
        if Image.registered_extensions().get(suffix) not in Image.SAVE:
            continue
        Image.new("RGB", (8, 8), (200, 10, 10)).save(root / "train" / "a" / f"new{suffix}")
        assert f"train/a/new{suffix}" in load(root, size=8).train.names
    for name in ("x.eps", "x.wmf", "x.pdf", "x.h5"):
        assert not image_files.is_image(name)


def test_gray_stays_gray_and_serves_a_teacher_with_one_channel(root: Path, tmp_path: Path) -> None:
    assert load(root, channels=1).shape == (1, 8, 8)
    assert load(root).shape == (3, 8, 8)
    checkpoint = tmp_path / "teacher.safetensors"
    checkpoint.write_bytes(write_weights(build("resnet8", num_classes=2, in_channels=1), {}))
    result = dskd.distill(
        student="resnet8",
        teacher={"name": "resnet8", "checkpoint": str(checkpoint), "trust": True},
        data={"name": "folder", "root": str(root), "size": 8, "channels": 1},
        method="kd",
        train={"epochs": 1, "batch_size": 4},
        out=tmp_path / "run",
    )
    assert result.test_accuracy >= 0


def test_train_alone_is_divided_and_the_images_are_listed(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in (root / "val").rglob("*.png"):
        file.unlink()
    for folder in (root / "val" / "a", root / "val" / "b", root / "val"):
        folder.rmdir()
    with pytest.raises(InputError, match=r"data={..., \"test_split\": 0.01} holds out no image"):
        load(root, test_split=0.01)
    dataset = load(root, test_split=0.5)
    assert dataset.train.labels.bincount().tolist() == [2, 2]
    assert dataset.test.labels.bincount().tolist() == [2, 2]
    assert dataset.validation is None
    assert not {*dataset.train.names} & {*dataset.test.names}
    assert (
        "4 of the 8 training images are held out (data.test_split=0.5), and the student is "
        "tested on them"
    ) in " ".join(dataset.notes)
    settings = {"name": "folder", "root": str(root), "size": 8, "test_split": 0.5}
    small = {"epochs": 1, "batch_size": 4}
    out = tmp_path / "run"
    dskd.train(student="resnet8", data=settings, train=small, out=out)
    assert tuple((out / "test_images.txt").read_text().split()) == dataset.test.names
    dskd.evaluate(out)
    assert "were not held out" not in caplog.text
    for number in range(10):  # the test split is drawn from other images now
        write(root / "train" / "a" / f"new{number}.png", 90 + number)
    dskd.evaluate(out)
    assert "test images were not held out when this run was trained" in caplog.text


def test_class_folders_without_a_split_are_divided(tmp_path: Path) -> None:
    """As users have them: photos/rose/1.jpg, with stray files next to the classes."""
    root = tmp_path / "photos"
    for name in ("rose", "tulip"):
        for number in range(5):
            write(root / name / f"{number}.png", 40 * number)
        write(root / name / "more" / "5.png", 200)
    write(root / "loose.png", 1)
    (root / "LICENSE.txt").write_text("free")
    write(root / ".cache" / "hidden" / "0.png", 1)
    dataset = load(root)
    assert dataset.classes == ("rose", "tulip")
    assert dataset.train.labels.bincount().tolist() == [5, 5]
    assert dataset.test.labels.bincount().tolist() == [1, 1]
    assert not {*dataset.train.names} & {*dataset.test.names}
    assert {"rose/more/5.png", "tulip/0.png"} <= {*dataset.train.names, *dataset.test.names}
    notes = " ".join(dataset.notes)
    assert "2 of the 12 training images are held out (data.test_split=0.2)" in notes
    assert "2 files ignored, because they are no images of a class, such as LICENSE.txt" in notes
    assert len(load(root, test_split=0.5).test) == 6
    assert load(root).fingerprint() == dataset.fingerprint()


def test_a_class_folder_without_an_image_is_named_with_its_path(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "rose" / "0.png", 3)
    (tmp_path / "photos" / "tulip").mkdir()
    with pytest.raises(InputError, match=r"photos/tulip holds no image, such as a \.jpg file"):
        load(tmp_path / "photos")


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_the_evaluation_split_has_one_of_four_names(root: Path, name: str) -> None:
    (root / "val").rename(root / name)
    dataset = load(root)
    assert len(dataset.test) == 4
    assert dataset.validation is None
    assert len(load(root, val_fraction=0.25).validation or ()) == 2


def test_a_validation_and_a_test_folder_are_what_they_are_called(root: Path) -> None:
    for name in ("a", "b"):
        write(root / "test" / name / "0.png", 99)
    dataset = load(root)
    assert len(dataset.test) == 2
    assert dataset.validation is not None
    assert len(dataset.validation) == 4
    assert load(root).fingerprint() == dataset.fingerprint()  # from the cache
    with pytest.raises(InputError, match=r"val is the validation split; drop data\.val_fraction"):
        load(root, val_fraction=0.2)
    with pytest.raises(InputError, match=r"test is the test split; drop .*test_split"):
        load(root, test_split=0.2)


def test_two_validation_folders_are_refused(root: Path) -> None:
    write(root / "valid" / "a" / "0.png")
    with pytest.raises(InputError, match="has val/ and valid/, and one validation split is needed"):
        load(root)


@pytest.mark.parametrize(
    ("name", "what"),
    [("A", "upper and lower case"), ("a ", "spaces at an end")],
)
def test_class_names_that_differ_in_form_are_quoted(root: Path, name: str, what: str) -> None:
    (root / "val" / "a").rename(root / "val" / name)
    message = f"has the class {name!r} where train has 'a': they differ only in {what}"
    with pytest.raises(InputError, match=message):
        load(root)


def test_two_unicode_forms_of_a_name_are_told_apart(root: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    (root / "train" / "a").rename(root / "train" / composed)
    (root / "val" / "a").rename(root / "val" / decomposed)
    if not (root / "train" / composed).exists() or (root / "train" / decomposed).exists():
        pytest.skip("this file system does not tell the two forms apart")
    with pytest.raises(InputError, match=r"'cafe\\u0301' where train has 'café'.*Unicode form"):
        load(root)


def test_two_classes_whose_names_differ_in_case_are_noted(root: Path) -> None:
    if (root / "train" / "A").exists():
        pytest.skip("this file system does not tell upper and lower case apart")
    write(root / "train" / "A" / "0.png")
    assert "the classes 'A' and 'a' differ only in upper and lower case" in notes(root)


def test_a_class_that_val_lacks_is_trained_and_reported(root: Path) -> None:
    write(root / "train" / "c" / "0.png")
    dataset = load(root)
    assert dataset.classes == ("a", "b", "c")
    assert dataset.notes == ("val lacks the classes c: trained, and never tested",)
    (root / "val" / "c").mkdir()
    assert "val has no image of c" in notes(root)


def test_folders_of_tools_are_no_classes(root: Path) -> None:
    for folder in ("train/__MACOSX", "train/a/@eaDir", "val/.ipynb_checkpoints"):
        write(root / folder / "0.png")
    (root / "train" / "a" / "Thumbs.db").write_bytes(b"x")
    (root / "train" / "a" / ".DS_Store").write_bytes(b"x")
    dataset = load(root)
    assert dataset.classes == ("a", "b")
    assert len(dataset.train) == 8
    assert dataset.notes == ("ignored: __MACOSX (1 file), @eaDir (1 file)",)


def test_swapped_files_of_equal_size_and_time_are_noticed(root: Path) -> None:
    one, other = root / "train" / "a" / "1.png", root / "train" / "b" / "2.png"
    other.write_bytes(one.read_bytes().replace(b"IDAT", b"IDAT"))
    write(other, 20)
    assert one.stat().st_size == other.stat().st_size
    for file in (one, other):
        os.utime(file, ns=(10**18, 10**18))
    before = load(root)
    one.rename(root / "spare")
    other.rename(one)
    (root / "spare").rename(other)
    assert one.stat().st_mtime_ns == other.stat().st_mtime_ns
    after = load(root)
    assert before.fingerprint() != after.fingerprint()
    assert not torch.equal(before.train.images[1], after.train.images[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, r"data\.channels must be 1 for gray or 3 for RGB, got 2"),
        ({"value_range": (5, 5)}, r"data\.value_range must be a lower and a higher value"),
        ({"max_pixels": 0}, r"data\.max_pixels must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(
    root: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load(root, **options)


@pytest.mark.parametrize("option", ["channels", "value_range", "max_pixels", "skip_bad"])
def test_published_data_sets_have_a_fixed_format(option: str) -> None:
    values: dict[str, Any] = {
        "channels": 1,
        "value_range": (0, 9),
        "max_pixels": 9,
        "skip_bad": True,
    }
    with pytest.raises(InputError, match="digits has a fixed format; drop them"):
        load_dataset("digits", **{option: values[option]})


def test_paths_may_be_texts(root: Path) -> None:
    assert load_dataset("folder", root=str(root), cache_dir=str(root.parent / "c")).shape[0] == 3
