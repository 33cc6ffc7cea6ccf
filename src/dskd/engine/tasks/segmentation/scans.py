"""Images of folders: from files to pixels, and what of a file the pixels do not keep."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dskd.data.archives import Files
from dskd.data.image_files import JPEG, BadImageError, opened
from dskd.data.pixels import PixelForm, convert, shallow


class ScanReader:
    """Reads images, and remembers what their pixels lost.

    Args:
        form: What pixels become.
    """

    def __init__(self, form: PixelForm) -> None:
        self.form = form
        self._depths: list[float] = []
        self._count = self._coloured = 0

    def read(self, files: Files, name: str) -> NDArray[Any]:
        """Decodes one image to uint8, ``[height, width, C]``.

        Args:
            files: The tree of files.
            name: Name of the image file.

        Raises:
            BadImageError: The image cannot be used.
        """
        with opened(files, name, self.form) as image:
            refuse_stack(image, files.where(name))
            self._count += 1
            self._coloured += self.form.channels == 1 and _has_colours(image)
            array = np.asarray(convert(image, self.form, self._depths))
        return array[:, :, None] if array.ndim == 2 else array

    def notes(self) -> list[str]:
        """Lines about what was lost, for the user."""
        notes = shallow(max(self._depths, default=None))
        if self._coloured:
            notes.append(
                f"{self._coloured} of {self._count} images have colours, which become gray; "
                "data.channels=3 keeps them"
            )
        return notes


def refuse_stack(image: Image.Image, where: str) -> None:
    """Refuses a file of several images, of which only the first would be read.

    A JPEG is let through: cameras put previews behind the image.

    Args:
        image: As it was opened.
        where: Names the file.

    Raises:
        BadImageError: The file has several.
    """
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format not in JPEG:
        raise BadImageError(
            f"{where} is a stack of {count} images; save each as a file of its own", "a stack"
        )


def _has_colours(image: Image.Image) -> bool:
    """Whether a pixel is not gray."""
    if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"):
        return False
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels != pixels[:, :, :1]).any())
