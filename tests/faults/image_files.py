"""Images of every mode and size, damaged images, and files that are not images.

An image is decoded to upright RGB of its own size, or refused in one line that names its file.
"""

from __future__ import annotations

import io
import math
import random
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from dskd.data.folder_files import FolderFiles
from dskd.data.image_decoding import decode
from tests.faults.outcomes import refusal, tree

FAMILY = "unusual and damaged images"
SAMPLE, WHOLE = 12, 300
"""Number of random changes to an image of each format: in the test suite, and in a whole run."""

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "LAB", "YCbCr", "I"),
    "WEBP": ("L", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I"),
}
"""The modes in which each format is tested."""
SIZES = ((1, 1), (1, 9), (9, 1), (8, 8), (33, 17))


class ImageCase(NamedTuple):
    """A file and the expected outcome.

    Attributes:
        data: The content of the file.
        size: The size to which it is resized; None for its own.
        shape: The expected height and width, if it can be decoded.
        expected: ``read``, ``refused`` or ``either``.
    """

    data: bytes
    size: int | None
    shape: tuple[int, int] | None
    expected: str


def cases(whole: bool = True) -> Iterator[tuple[str, ImageCase]]:
    """Every mode, every orientation, random damage, and files that are not images."""
    for form, modes in MODES.items():
        for mode in modes:
            for width, height in SIZES:
                data = _saved(_drawn(mode, width, height), form)
                name = f"{form} {mode} of {width}x{height}"
                yield name, ImageCase(data, None, (height, width), "read")
                yield f"{name}, resized", ImageCase(data, 6, (6, 6), "read")
    yield from _turned()
    for form, mode in (("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I"), ("PNG", "RGB")):
        data = _saved(_drawn(mode, 600, 400), form)
        yield f"{form} {mode}, memory use", ImageCase(data, None, (400, 600), "read")
    for name, data in NOT_IMAGES.items():
        yield name, ImageCase(data, None, None, "refused")
    for form in MODES:
        whole_file = _saved(_drawn("RGB", 33, 17), form)
        for fraction in (0.02, 0.1, 0.3, 0.5, 0.7):
            cut = whole_file[: int(len(whole_file) * fraction)]
            yield f"{form} truncated at {fraction}", ImageCase(cut, None, None, "refused")
        for number in range(WHOLE if whole else SAMPLE):
            data = _damaged(whole_file, random.Random(number))
            yield f"{form} changed {number}", ImageCase(data, 6, (6, 6), "either")


def check(case: ImageCase, folder: Path) -> str:
    """Decodes an image as an image folder does."""
    path = folder / "image.png"  # the suffix does not matter
    path.write_bytes(case.data)
    found: list[torch.Tensor] = []
    files = FolderFiles(folder, [path.name])
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damage that it can decode
        line = refusal(lambda: found.append(decode(files, [path.name], case.size)))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if case.shape and found and math.prod(found[0].shape[2:]) > 10**5:
        assert most < 20 * math.prod(found[0].shape[2:]), f"{most} bytes were allocated at once"
    assert [*tree(folder)] == [path.name], "something was written"
    if line is None:
        assert case.shape is None or found[0].shape == (1, 3, *case.shape), found[0].shape
        assert found[0].dtype == torch.uint8
    else:
        assert "image.png" in line, f"the message does not name the file: {line}"
    outcome = "read" if line is None else "refused"
    assert case.expected in (outcome, "either"), f"it was {outcome}: {line}"
    return outcome


def _drawn(mode: str, width: int, height: int) -> Image.Image:
    levels = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    image = Image.fromarray(levels)
    if mode in ("I;16", "I"):
        gray = np.asarray(image.convert("L")).astype(np.uint16 if mode == "I;16" else np.int32)
        return Image.fromarray(gray * 257)
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    return image.convert(mode)


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def _turned() -> Iterator[tuple[str, ImageCase]]:
    """Every EXIF orientation, invalid ones, and invalid EXIF data."""
    image = _drawn("RGB", 9, 5)
    for number in (*range(10), 2**16 - 1):
        exif = Image.Exif()
        exif[0x0112] = number
        shape = (9, 5) if number in (5, 6, 7, 8) else (5, 9)
        for form in ("PNG", "JPEG", "WEBP", "TIFF"):
            data = _saved(image, form, exif=exif)
            yield f"{form} with orientation {number}", ImageCase(data, None, shape, "read")
    for name, raw in {
        "garbage": b"Exif\0\0" + b"\xff" * 64,
        "a loop": b"Exif\0\0II*\0\x08\0\0\0" + b"\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0" * 2,
        "a huge count": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff" * 9,
    }.items():
        data = _saved(image, "JPEG", exif=raw)
        yield f"JPEG with EXIF data: {name}", ImageCase(data, None, None, "either")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that claims to have that size."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


_MIB_OF_ZEROS = zlib.compress(bytes(2**20))
NOT_IMAGES: dict[str, bytes] = {
    "an empty file": b"",
    "a null byte": b"\0",
    "text": b"hello, this is no image\n" * 9,
    "HTML": b"<html><body>404 Not Found</body></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "EPS, which runs a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    "PDF": b"%PDF-1.4\n1 0 obj <</Type /Catalog>> endobj\n",
    "an icon": b"\0\0\x01\0\x01\0\x01\x01\0\0\x01\0\x18\0\x30\0\0\0\x16\0\0\0" + bytes(48),
    "PSD": b"8BPS\0\x01" + bytes(60),
    "a zip": b"PK\x03\x04" + bytes(26),
    "a pickle": b"cos\nsystem\n(S'touch mark'\ntR.",
    "a program": b"\x7fELF" + bytes(60),
    "PNG of 0 x 0": _png(0, 0),
    "PNG without pixels": _png(9, 9),
    "PNG of 2^31 pixels wide": _png(2**31 - 1, 1, _chunk(b"IDAT", _MIB_OF_ZEROS)),
    "PNG of 100,000 x 100,000": _png(100_000, 100_000, _chunk(b"IDAT", _MIB_OF_ZEROS)),
    "PNG of 10,000 x 10,000": _png(10_000, 10_000, _chunk(b"IDAT", _MIB_OF_ZEROS)),
    "PNG with text of 64 MiB": _png(
        9, 9, *[_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))], _chunk(b"IDAT", b"")
    ),
    "PNG with a profile of 64 MiB": _png(
        9, 9, _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26))), _chunk(b"IDAT", b"")
    ),
    "BMP with a negative width": _bmp(-9, 9),
    "BMP of 2^31 x 2^31": _bmp(2**31 - 1, 2**31 - 1),
    "PPM of 10^9 x 10^9": b"P6 1000000000 1000000000 255\n",
    "PPM with a width of 5,000 digits": b"P6 " + b"9" * 5000 + b" 1 255\n",
    "PPM without colours": b"P6 2 2 0\n" + bytes(12),
    "GIF of 0 x 0": b"GIF89a\0\0\0\0\0\0\0;",
    "GIF of 65,535 x 65,535": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
    "TIFF with a circular directory": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "TIFF without a directory": b"II*\0\xff\xff\xff\xff",
    "a short WebP": b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff",
    "the first bytes of a JPEG": b"\xff\xd8\xff",
    "JPEG of 65,535 x 65,535": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x11\0"
    b"\x02\x11\x01\x03\x11\x01\xff\xd9",
}  # fmt: skip
"""Files that are not images, or that claim to be too large."""


def _damaged(data: bytes, draw: random.Random) -> bytes:
    """A few bytes are changed, removed or inserted, more often in the header."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(changed) if draw.random() < 0.5 else min(64, len(changed)))
        match draw.randrange(4):
            case 0:
                changed[at] = draw.randrange(256)
            case 1:
                changed[at] ^= 1 << draw.randrange(8)
            case 2:
                del changed[at : at + draw.randrange(1, 9)]
            case _:
                changed[at:at] = draw.randbytes(draw.randrange(1, 9))
    return bytes(changed)
