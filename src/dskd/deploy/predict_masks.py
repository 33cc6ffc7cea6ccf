"""Predict the masks of many image files, and draw them over the images."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dskd.data.folder_files import FolderFiles
from dskd.data.image_files import BadImageError, pillow_without_limit
from dskd.deploy.predict import BadInput, Skipped, find_images
from dskd.engine.tasks.segmentation.overlay import draw_overlay
from dskd.engine.tasks.segmentation.scans import ScanReader
from dskd.engine.tasks.segmentation.student import SegmentationStudent
from dskd.errors import InputError
from dskd.storage.atomic import make_folder, replace_file

Row = tuple[str, dict[str, float]]
"""An image file, and the share of its pixels that each class has, in percent."""


def predict_masks(
    student: SegmentationStudent, inputs: Sequence[str | Path], out: Path, skipped: Skipped
) -> Iterator[Row]:
    """Predicts the mask of each image file, and writes it twice.

    ``NAME_mask.png`` has the number of the class in each pixel, and ``NAME_overlay.png`` shows the
    mask over the image.

    Args:
        student: The student.
        inputs: Files, folders and patterns, see `dskd.deploy.predict.find_images`.
        out: The folder to write to. Files of these names are replaced.
        skipped: Notes the inputs that cannot be used.

    Raises:
        InputError: No image of the inputs can be used.
    """
    names: dict[str, str] = {}
    for one in find_images(inputs):
        if isinstance(one, BadInput):
            skipped.add(one)
            continue
        name = Path(one).stem
        if name in names:
            message = f"its mask would have the name of that of {names[name]}"
            skipped.add(BadInput(one, "of the same name", message))
            continue
        try:
            row = _predict_one(student, one, out)
        except InputError as error:
            reason = error.reason if isinstance(error, BadImageError) else "too small"
            skipped.add(BadInput(one, reason, str(error)))
            continue
        names[name] = one
        yield row
    if not names:
        raise InputError(f"no image can be used: {'; '.join(skipped.lines()) or 'none was given'}")


def predict_mask(
    student: SegmentationStudent, path: Path
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image file, uint8 ``[C, H, W]``, and the class of each of its pixels, ``[H, W]``.

    Raises:
        InputError: The file is missing, does not decode, or is too small.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; give paths of image files")
    reader = ScanReader(student.recipe.data.pixel_form)
    with pillow_without_limit():
        image = reader.read(FolderFiles(path.parent, [path.name]), path.name)
    image = image.transpose(2, 0, 1)
    return image, student.predict(image)


def _predict_one(student: SegmentationStudent, path: str, out: Path) -> Row:
    """Predicts and writes one mask."""
    place = Path(path)
    image, mask = predict_mask(student, place)
    make_folder(out)
    replace_file(out / f"{place.stem}_mask.png", _png(Image.fromarray(mask)))
    replace_file(out / f"{place.stem}_overlay.png", _png(draw_overlay(image, mask)))
    shares = 100 * np.bincount(mask.ravel(), minlength=len(student.classes)) / mask.size
    return path, dict(zip(student.classes[1:], shares[1:].tolist(), strict=True))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
