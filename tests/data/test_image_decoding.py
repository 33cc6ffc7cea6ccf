"""Decoding of images of every mode and size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dskd.data import image_decoding, image_files
from dskd.data.folder_files import FolderFiles
from dskd.data.image_decoding import decode
from dskd.data.image_files import is_image
from dskd.data.pixels import convert, square
from dskd.errors import InputError


def _decode(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    image.save(path, **options)  # type: ignore[arg-type]
    files = FolderFiles(path.parent, [path.name])
    return decode(files, [path.name], None)[0].numpy().transpose(1, 2, 0)


def _colours(*pixels: tuple[int, ...] | int, mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


def test_gray(tmp_path: Path) -> None:
    found = _decode(_colours(0, 100, 255, mode="L"), tmp_path / "x.png")
    assert found.tolist() == [[[0] * 3, [100] * 3, [255] * 3]]


def test_black_and_white(tmp_path: Path) -> None:
    found = _decode(_colours(0, 255, mode="1"), tmp_path / "x.png")
    assert found.tolist() == [[[0] * 3, [255] * 3]]


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = _colours((255, 0, 0), (0, 0, 255)).convert("P", palette=Image.Palette.ADAPTIVE)
    red, blue = image.getpixel((0, 0)), image.getpixel((1, 0))
    assert _decode(image, tmp_path / "x.png").tolist() == [[[255, 0, 0], [0, 0, 255]]]
    clear = _decode(image, tmp_path / "y.png", transparency=blue)
    assert clear.tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert _decode(image, tmp_path / "z.gif").tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert red != blue


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    pixels = ((10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128))
    found = _decode(_colours(*pixels, mode="RGBA"), tmp_path / "x.png")
    assert found.tolist() == [[[10, 20, 30], [255] * 3, [127] * 3]]
    gray = _decode(_colours((50, 255), (50, 0), mode="LA"), tmp_path / "y.png")
    assert gray.tolist() == [[[50] * 3, [255] * 3]]
    keyed = _decode(_colours((1, 2, 3), (4, 5, 6)), tmp_path / "z.png", transparency=(1, 2, 3))
    assert keyed.tolist() == [[[255] * 3, [4, 5, 6]]]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_gray_keeps_the_upper_bits(ending: str, tmp_path: Path) -> None:
    levels = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    found = _decode(Image.fromarray(levels), tmp_path / f"x.{ending}")
    assert found[0, :, 0].tolist() == [0, 0, 1, 156, 255]
    assert np.array_equal(found[..., 0], found[..., 2])


def test_cmyk(tmp_path: Path) -> None:
    image = _colours((0, 0, 0, 0), (0, 255, 255, 0), mode="CMYK")
    assert _decode(image, tmp_path / "x.tif").tolist() == [[[255] * 3, [255, 0, 0]]]
    flat = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = _decode(flat, tmp_path / "x.jpg", quality=100)
    assert np.abs(found.astype(int) - [255, 0, 0]).max() <= 4


def test_float_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot decode .*x\.tif.*float"):
        _decode(Image.new("F", (2, 2)), tmp_path / "x.tif")


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    image = _colours((255, 0, 0), (0, 255, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, to be shown upright
    found = _decode(image, tmp_path / "x.png", exif=exif)
    assert found.shape == (3, 1, 3)
    assert found[:, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.mark.parametrize("size", [(1, 1), (5, 5), (3, 40), (100, 97), (97, 100), (17, 16)])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_a_check_finds_the_upright_size(
    size: tuple[int, int], orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(tmp_path / "x.jpg", exif=exif)
    files = FolderFiles(tmp_path, ["x.jpg"])
    expected = image_files.read_image(files, "x.jpg", None).shape[:2]
    assert image_files.check_image(files, "x.jpg") == expected


def test_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    found = _decode(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert found[0, 0].tolist() == [255, 0, 0]


def test_the_content_counts_not_the_ending(tmp_path: Path) -> None:
    found = _decode(Image.new("RGB", (3, 2), "red"), tmp_path / "x.webp", format="BMP")
    assert found.shape == (2, 3, 3)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_any_shape_becomes_a_square_of_that_size(width: int, height: int, size: int) -> None:
    flat = Image.new("RGB", (width, height), (9, 99, 199))
    made = square(flat, size)
    assert made.size == (size, size)
    assert np.unique(np.asarray(made).reshape(-1, 3), axis=0).tolist() == [[9, 99, 199]]


def test_the_middle_is_cut_out() -> None:
    pixels = [(x, 0, 0) for x in range(9)]
    wide = _colours(*pixels).resize((9, 3), Image.Resampling.NEAREST)
    assert np.asarray(square(wide, 3))[0, :, 0].tolist() == [3, 4, 5]
    assert np.asarray(square(wide.transpose(Image.Transpose.TRANSPOSE), 3))[:, 0, 0].tolist() == [
        3,
        4,
        5,
    ]


def test_shrinking_by_a_whole_number_averages_blocks() -> None:
    levels = np.random.RandomState(0).randint(0, 256, (12, 12, 3)).astype(np.uint8)
    found = np.asarray(square(Image.fromarray(levels), 4)).astype(float)
    blocks = levels.reshape(4, 3, 4, 3, 3).mean((1, 3))
    assert np.abs(found - blocks).max() <= 1


def test_a_thin_image_takes_no_memory() -> None:
    assert square(Image.new("RGB", (1, 1_000_000)), 64).size == (64, 64)


def test_one_pixel(tmp_path: Path) -> None:
    image = Image.new("RGB", (1, 1), "red")
    assert _decode(image, tmp_path / "x.png").tolist() == [[[255, 0, 0]]]
    assert square(image, 8).size == (8, 8)


def test_rgb_is_left_as_it_is() -> None:
    image = _colours((1, 2, 3), (4, 5, 6))
    assert np.array_equal(np.asarray(convert(image)), np.asarray(image))


def test_many_images_keep_their_order(tmp_path: Path) -> None:
    names = [f"{number:03}.png" for number in range(200)]
    for number, name in enumerate(names):
        Image.new("L", (2, 2), number).save(tmp_path / name)
    images = decode(FolderFiles(tmp_path, names), names, None)
    assert images[:, 0, 0, 0].tolist() == list(range(200))


@pytest.mark.parametrize("name", ["a.png", "train/cat/A.JPEG", "x.y.TIFF"])
def test_images_are_known_by_their_ending(name: str) -> None:
    assert is_image(name)
    assert not is_image(name + ".txt")
    assert not is_image(f"a/.{name.rsplit('/', 1)[-1]}")


@pytest.mark.parametrize(("at_once", "most"), [(64, 64), (128, 128), (10**6, 256)])
def test_threads_share_the_pixels_that_are_decoded_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, most: int
) -> None:
    seen: list[int] = []

    def noted(image: Image.Image, *more: Any) -> Image.Image:
        seen.append(image_files._BUDGET.pixels)
        time.sleep(0.001)
        return convert(image, *more)

    monkeypatch.setattr(image_files, "convert", noted)
    monkeypatch.setattr(image_files, "_MAX_PIXELS", at_once)
    monkeypatch.setattr(image_decoding, "_CHUNK", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    names = [f"{number}.png" for number in range(9)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert decode(FolderFiles(tmp_path, names), names, None).shape == (9, 3, 8, 8)
    assert max(seen) <= most
    assert image_files._BUDGET.pixels == 0
