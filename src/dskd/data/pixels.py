"""What the pixels of an image become: upright, 8 bits, RGB or gray, and of one size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from dskd.data.augmentation import Interpolation

MAX_PIXELS = 89_478_485
"""Most pixels of an image, if no other number is set: Pillow's own limit."""


@dataclass(frozen=True)
class PixelForm:
    """What pixels become.

    Attributes:
        channels: 3 for RGB, 1 for gray.
        value_range: The values that become 0 and 255; None for those of the file's type.
        max_pixels: Most pixels of an image.
        crop_pct: Side of the centred square that is kept, as a part of the shorter side.
        interpolation: How an image is resized; None for block averages and BICUBIC, see `square`.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS
    crop_pct: float = 1.0
    interpolation: Interpolation | None = None


RGB = PixelForm()


class NoRangeError(ValueError):
    """An image has floats, and nothing says which of them are black and white."""


def square(image: Image.Image, size: int, form: PixelForm = RGB) -> Image.Image:
    """Crop the largest centred square and resize it to ``size`` pixels.

    Shrinking by a whole factor averages blocks of pixels (Pillow's BOX filter). All other factors
    use BICUBIC, which in Pillow is antialiased.

    With a `crop_pct` or an `interpolation`, the pixels are those of timm's evaluation: the shorter
    side is resized to ``size / crop_pct``, and the centre is cropped. Pillow does both in one call.
    """
    if form.crop_pct != 1 or form.interpolation is not None:
        return _resized_centre(image, size, form)
    if image.size == (size, size):
        return image
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    whole = side % size == 0
    return image.resize(
        (size, size),
        Image.Resampling.BOX if whole else Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )


def _resized_centre(image: Image.Image, size: int, form: PixelForm) -> Image.Image:
    """The centre of the resized image, with torchvision's rounding of sizes and offsets."""
    short = int(size / form.crop_pct)
    width, height = image.size
    scaled = (
        (short, int(short * height / width))
        if width <= height
        else (int(short * width / height), short)
    )
    left, top = (round((side - size) / 2) for side in scaled)
    x, y = width / scaled[0], height / scaled[1]
    return image.resize(
        (size, size),
        Image.Resampling[(form.interpolation or "bicubic").upper()],
        box=(left * x, top * y, (left + size) * x, (top + size) * y),
    )


def convert(
    image: Image.Image, form: PixelForm = RGB, depths: list[float] | None = None
) -> Image.Image:
    """Convert an image of any mode to upright 8-bit RGB or gray.

    The EXIF orientation is applied; no other EXIF tag is read. Transparent pixels are blended with
    white. 16-bit gray keeps its upper eight bits, unless ``form`` has a range of values; an
    animation keeps its first frame.

    Args:
        image: The image.
        form: What pixels become.
        depths: Gets the largest value of an image with more than 8 bits.

    Raises:
        NoRangeError: The mode has no fixed range (32-bit float), and ``form`` has none either.
    """
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image, form.value_range, depths)
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        image = _stretched(image, form.value_range)
    else:
        if image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
        image = _stretched(image, form.value_range)
    mode = "RGB" if form.channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image with an EXIF orientation is turned upright."""
TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation: 1, which is upright, if there is none or EXIF data cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found if found in _TURNS else 1
    except Exception:  # damaged EXIF data raise many types
        return 1


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """How the EXIF orientation turns an image; None if it is upright."""
    image.load()  # which turns a TIFF by itself
    return _TURNS.get(orientation_of(image))


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation wants it."""
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def _to_8_bits(
    image: Image.Image, value_range: tuple[float, float] | None, depths: list[float] | None
) -> Image.Image:
    """Gray with 8 bits, from 16 or 32 bits or from floats."""
    values = np.asarray(image)
    if value_range is None:
        if image.mode == "F":
            raise NoRangeError(
                "32-bit float images have no fixed range; save it with 8 or 16 bits, or set "
                "data.value_range"
            )
        if depths is not None:
            depths.append(float(values.max()))
        levels = values >> 8  # 16 bits, or 32 bits with a sign
        np.clip(levels, 0, 255, out=levels)
        return Image.fromarray(levels.astype(np.uint8))
    low, high = value_range
    spread = (values.astype(np.float64) - low) * (255 / (high - low))
    return Image.fromarray(np.nan_to_num(np.clip(spread, 0, 255)).round().astype(np.uint8))


def _stretched(image: Image.Image, value_range: tuple[float, float] | None) -> Image.Image:
    """An image with 8 bits, with its values from ``value_range`` spread to 0 to 255."""
    if value_range is None:
        return image
    low, high = value_range
    table = [round(min(255.0, max(0.0, (v - low) * 255 / (high - low)))) for v in range(256)]
    return image.point(table * len(image.getbands()))


def shallow(deepest: float | None) -> list[str]:
    """A note on 16-bit images that use a small part of the range."""
    if deepest is None or deepest >= 2**14:
        return []
    return [
        f"the images with 16 bits have values up to {deepest:g} of 65535, and few levels are left "
        f"of them in 8 bits; set data.value_range=[0,{deepest:g}]"
    ]
