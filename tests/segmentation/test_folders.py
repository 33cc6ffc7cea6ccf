"""A user's folders: layouts, values of masks, sizes, splits by patient, and faults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dskd.data.pixels import PixelForm
from dskd.engine.tasks.segmentation.dataset import SegmentationData
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
    options: dict[str, Any] = {"size": None, "form": PixelForm(1), "patient": r"patient\d+"}
    return read_folders(root, ReadOptions(**{**options, "classes": None, **settings}))[:2]


def load(root: Path, **settings: Any) -> SegmentationData:
    given = {"root": root, "patients": 1, **settings}
    return load_images(SegmentationDataSettings(name="folder", **given))


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


def test_what_is_outside_an_image_has_no_value(tmp_path: Path) -> None:
    """The background is 1 here, and no mask has a 0 before images fit into a square."""
    write(tmp_path, "wide", size=(64, 32))
    mask = np.full((32, 64), 1, np.uint8)
    mask[8:16, 16:32] = 5
    Image.fromarray(mask).save(tmp_path / "mask" / "wide.png")
    classes, splits = read(tmp_path, size=32)
    assert classes == ("background", "value 5")
    expected = torch.zeros(32, 32, dtype=torch.uint8)
    expected[12:16, 8:16] = 1
    assert torch.equal(splits["train"].masks[0], expected)
    _, named = read(tmp_path, size=32, classes={"tissue": 1})
    assert named["train"].masks.sum() == 16 * 32 - 4 * 8
    with pytest.raises(InputError, match=r"has the value 0 of lesion; there are 1, 5"):
        read(tmp_path, size=32, classes={"lesion": 0})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "validation", "test"), {"train", "val", "test"}),
        (("train", "valid"), {"train", "val"}),
        (("train", "Val"), "holds images in Val, and splits are called .*; rename Val to val"),
        (("train", "val", "Test"), "rename Test to test"),
        (("Train", "val"), "rename Train to train"),
        (("train", "val", "valid"), "val/ and valid/, and one validation split is needed"),
    ],
)
def test_names_of_splits(tmp_path: Path, names: tuple[str, ...], expected: set[str] | str) -> None:
    for name in names:
        write(tmp_path / name, f"{name}_1")
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            read(tmp_path)
    else:
        assert {*read(tmp_path)[1]} == expected


def test_a_folder_beside_the_splits_is_told(tmp_path: Path) -> None:
    for patient in range(3):
        write(tmp_path / "train", f"patient{patient}")
    for name in ("test", "holdout"):
        write(tmp_path / name, f"{name}_1")
    (tmp_path / "notes").mkdir()
    found = load(tmp_path).notes
    assert "the images in holdout belong to no split" in " ".join(found)
    assert "notes" not in " ".join(found)


def scans(root: Path, image: Image.Image, count: int = 4) -> Path:
    """A folder whose images are all the same one."""
    for patient in range(count):
        write(root, f"patient{patient}")
        (root / "img" / f"patient{patient}.png").unlink()
        image.save(root / "img" / f"patient{patient}.tif")
    return root


def test_few_values_of_16_bits_are_told_and_can_be_spread(tmp_path: Path) -> None:
    values = np.linspace(0, 499, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    root = scans(tmp_path, Image.fromarray(values))
    lost = load(root)
    (note,) = lost.notes[1:]
    assert re.search(r"values up to 499 of 65535.*value_range.*\[0, ?499\]", note)
    assert len(torch.unique(lost.full.images)) == 2
    spread = load(root, value_range=(0, 499))
    assert spread.notes[1:] == ()
    assert len(torch.unique(spread.full.images)) > 200


def test_colours_that_become_gray_are_told(tmp_path: Path) -> None:
    gray = scans(tmp_path / "gray", Image.new("RGB", (SIDE, SIDE), (9, 9, 9)))
    assert load(gray).notes[1:] == ()
    coloured = scans(tmp_path / "coloured", Image.new("RGB", (SIDE, SIDE), (200, 9, 9)))
    assert "4 of 4 images have colours, which become gray" in load(coloured).notes[1]
    assert load(coloured, channels=3).notes[1:] == ()


@pytest.mark.parametrize("part", ["img", "mask"])
def test_a_stack_is_refused(tmp_path: Path, part: str) -> None:
    root = scans(tmp_path, Image.new("L", (SIDE, SIDE)))
    for path in (root / part).glob("patient0.*"):
        path.unlink()
    pages = [Image.new("L", (SIDE, SIDE), page) for page in range(3)]
    pages[0].save(root / part / "patient0.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"patient0.tif is a stack of 3 images; save each"):
        load(root)


def test_names_without_a_patient_are_told(tmp_path: Path) -> None:
    for name in ("patient1_1", "case2_1", "case3_1", "case4_1"):
        write(tmp_path, name)
    assert "3 of 4 names do not match data.patient" in load(tmp_path).notes[1]
    assert load(tmp_path, patient=r"\w+?\d").notes[1:] == ()


def test_too_large_images_are_allowed_by_a_setting_of_this_task(tmp_path: Path) -> None:
    for patient in range(4):
        write(tmp_path, f"patient{patient}")
    with pytest.raises(InputError, match=r"256 pixels, and data\.max_pixels"):
        load(tmp_path, max_pixels=255)
    assert len(load(tmp_path, max_pixels=256).full)


def test_images_are_shown_also_if_no_mask_has_an_object(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, name)
    _, splits = read(tmp_path)
    train = splits["train"]
    assert train.examples(4) == [0, 1]
    train.masks[0] = 0
    assert train.examples(4) == [1]
    train.masks[1] = 0
    assert train.examples(4) == [0, 1]


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
        ("patient", {}, "patient 'patient7' has images in val and in test.* or rename the files"),
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
    unused = SegmentationDataSettings(name="folder", root=tmp_path, patients=4, test_split=0.5)
    with pytest.raises(InputError, match=r"data\.test_split has no effect: the data has a test"):
        load_images(unused)


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
