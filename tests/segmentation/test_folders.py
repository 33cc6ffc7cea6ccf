"""A user's folders: layouts, values of masks, sizes, splits by patient, and faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dskd.engine.tasks.segmentation.folders import ReadOptions, read_folders
from dskd.engine.tasks.segmentation.settings import SegmentationDataSettings
from dskd.engine.tasks.segmentation.sources import load_images
from dskd.errors import InputError

SIDE = 16


def write(folder: Path, name: str, value: int = 255, size: tuple[int, int] = (SIDE, SIDE)) -> None:
    """An image, and its mask with a square of a value."""
    for part in ("img", "mask"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = value
    Image.fromarray(mask // 2 + 20).save(folder / "img" / f"{name}.png")
    Image.fromarray(mask).save(folder / "mask" / f"{name}.png")


def read(root: Path, **settings: Any) -> Any:
    options: dict[str, Any] = {"size": None, "channels": 1, "patient": r"patient\d+"}
    return read_folders(root, ReadOptions(**{**options, "classes": None, **settings}))


def test_a_flat_folder(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, f"scan{number}")
    classes, splits = read(tmp_path)
    assert classes == ("background", "value 255")
    assert list(splits) == ["train"]
    assert splits["train"].names == splits["train"].patients == ("scan0", "scan1", "scan2")
    assert splits["train"].images.shape == (3, 1, SIDE, SIDE)
    assert splits["train"].masks.sum() == 3 * 16
    assert splits["train"].masks[0, 4, 4] == 1


def test_the_layout_of_the_heart_slices(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split, f"patient{len(split)}_01_1")
        (tmp_path / split / "img").rename(tmp_path / split / "Img")
        (tmp_path / split / "mask").rename(tmp_path / split / "GT")
    _, splits = read(tmp_path)
    assert [splits[split].patients for split in ("train", "val")] == [("patient5",), ("patient3",)]


def test_values_become_classes_in_the_order_that_is_given(tmp_path: Path) -> None:
    write(tmp_path, "a", 85)
    write(tmp_path, "b", 255)
    classes, splits = read(tmp_path)
    assert classes == ("background", "value 85", "value 255")
    assert [int(m.max()) for m in splits["train"].masks] == [1, 2]
    classes, splits = read(tmp_path, classes={"ventricle": 255})
    assert classes == ("background", "ventricle")
    assert [int(m.max()) for m in splits["train"].masks] == [0, 1]


def test_palettes_bits_and_16_bit_masks_keep_their_values(tmp_path: Path) -> None:
    for mode, value in (("P", 3), ("1", 1), ("I;16", 300)):
        folder = tmp_path / mode.replace(";", "")
        write(folder, "a", value % 256)
        values = np.zeros((SIDE, SIDE), np.uint16 if mode == "I;16" else np.uint8)
        values[:4] = value
        mask = (
            Image.fromarray(values * 255).convert("1") if mode == "1" else Image.fromarray(values)
        )
        if mode == "P":
            mask.putpalette([7, 7, 7] * 256)
        mask.save(folder / "mask" / "a.png")
        classes, splits = read(folder)
        assert classes == ("background", f"value {value}")
        assert splits["train"].masks.sum() == 4 * SIDE


def test_images_of_any_size_fit_into_the_square(tmp_path: Path) -> None:
    write(tmp_path, "wide", size=(64, 32))
    write(tmp_path, "tall", size=(20, 40))
    _, splits = read(tmp_path, size=32)
    train = splits["train"]
    assert train.images.shape == (2, 1, 32, 32)
    tall, wide = train.masks  # sorted by name
    assert not train.images[1, 0, :8].any()  # black above the wide image
    assert wide[12:16, 8:16].all()
    assert wide.sum() == 4 * 8
    assert set(tall.unique().tolist()) == {0, 1}


def make(root: Path, change: str) -> None:
    """A good folder with one fault."""
    for split, patients in {"train": 3, "val": 1, "test": 1}.items():
        for patient in range(patients):
            write(root / split, f"patient{split}{patient}_1")
    train = root / "train"
    match change:
        case "no mask":
            (train / "mask" / "patienttrain0_1.png").unlink()
        case "no image":
            (train / "img" / "patienttrain0_1.png").unlink()
        case "size":
            Image.new("L", (8, 8)).save(train / "mask" / "patienttrain0_1.png")
        case "sizes":
            write(train, "patienttrain9_1", size=(SIDE, 32))
        case "colour":
            Image.new("RGB", (SIDE, SIDE)).save(train / "mask" / "patienttrain0_1.png")
        case "jpeg":
            (train / "mask" / "patienttrain0_1.png").unlink()
            Image.new("L", (SIDE, SIDE)).save(train / "mask" / "patienttrain0_1.jpg")
        case "damaged":
            (train / "img" / "patienttrain0_1.png").write_bytes(b"no image")
        case "values":
            write(root / "test", "patienttest0_1", 77)
        case "photo":
            noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
            Image.fromarray(noise).save(train / "mask" / "patienttrain0_1.png")
        case "empty masks":
            for path in (train / "mask").iterdir():
                Image.new("L", (SIDE, SIDE)).save(path)
        case "no folder":
            (train / "mask").rename(train / "other")
        case "twice":
            Image.new("L", (SIDE, SIDE)).save(train / "img" / "patienttrain0_1.bmp")
        case "patient":
            write(root / "val", "patient7_1")
            write(root / "test", "patient7_2")
        case "split sizes":
            for part in ("img", "mask"):
                (root / "val" / part / "patientval0_1.png").unlink()
            write(root / "val", "patientval0_1", size=(32, 32))


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ("no mask", {}, "1 files have no file of the same name in .*mask, as .*patienttrain0_1"),
        ("no image", {}, "1 files have no file of the same name in .*img"),
        ("size", {}, "is 16x16 and its mask .* is 8x8; give them one size"),
        ("sizes", {}, "is 16x32 and others .* are 16x16; give all one size with data.size"),
        ("colour", {}, "has the mode RGB; save it with one channel"),
        ("jpeg", {}, "a JPEG does not keep the values of a mask; save masks as PNG"),
        ("damaged", {}, "cannot decode .*patienttrain0_1.png"),
        ("values", {}, "has the value 77, which no training mask has; there are 0, 255"),
        ("photo", {}, "and at most 32 can be classes; name the values"),
        ("empty masks", {}, "have one value only, 0"),
        ("no folder", {}, "has none of the folders mask, masks, gt"),
        ("twice", {}, "patienttrain0_1.bmp and .*patienttrain0_1.png have one name"),
        ("patient", {}, "patient 'patient7' has images in val and in test"),
        ("split sizes", {}, "images in .*val are 32x32, those in .*train 16x16"),
        ("", {"classes": {"heart": 9}}, "no mask in .* has the value 9 of heart; there are 0, 255"),
        ("", {"patients": 4}, "has 3 training patients"),
        ("", {"patient": "(x?)"}, "finds no patient in 'patienttrain0_1'"),
        ("", {"root": "nowhere"}, "no such folder"),
    ],
)
def test_faults_are_one_line(
    tmp_path: Path, change: str, settings: dict[str, Any], message: str
) -> None:
    make(tmp_path, change)
    given = {"root": tmp_path, "patients": 1, "patient": r"patient\d+", **settings}
    with pytest.raises(InputError, match=message) as caught:
        load_images(SegmentationDataSettings(name="folder", **given))
    assert "\n" not in str(caught.value)


def test_masks_go_to_some_patients_and_seeds_to_the_others(tmp_path: Path) -> None:
    for patient in range(10):
        for number in range(2):
            write(tmp_path, f"patient{patient}_{number}")
    settings = SegmentationDataSettings(name="folder", root=tmp_path, patients=3)
    data = load_images(settings)
    assert {name: len(part) for name, part in data.parts().items()} == {
        "full": 6,
        "weak": 6,
        "validation": 4,
        "test": 4,
    }
    homes = [set(part.patients) for part in data.parts().values()]
    assert len(set.union(*homes)) == 10
    assert sum(map(len, homes)) == 10
    assert data.full.seeds.any()
    assert data.weak is not None
    assert (data.weak.seeds <= data.weak.masks).all()
    assert load_images(settings).fingerprint() == data.fingerprint()
    other = load_images(settings.model_copy(update={"split_seed": 1}))
    assert other.fingerprint() != data.fingerprint()


def test_val_is_the_test_split_without_test(tmp_path: Path) -> None:
    for patient in range(5):
        write(tmp_path / "train", f"patient{patient}_1")
    write(tmp_path / "val", "patient7_1")
    data = load_images(SegmentationDataSettings(name="folder", root=tmp_path, patients=4))
    assert data.test.patients == ("patient7",)
    assert len(data.validation) == 1
    assert data.weak is None
    assert "4 patients with masks, 0 with seeds, 1 for validation, 1 for the test" in data.notes[0]


def test_other_masks_are_other_data(tmp_path: Path) -> None:
    for patient in range(4):
        write(tmp_path, f"patient{patient}_1")
    settings = SegmentationDataSettings(name="folder", root=tmp_path, patients=2)
    data = load_images(settings)
    mask = data.full.masks.clone()
    mask[0, 0, 0] = 1
    changed = torch.equal(mask, data.full.masks)
    assert not changed
    before = data.fingerprint()
    data.full.masks[0, 0, 0] = 1
    assert data.fingerprint() != before
