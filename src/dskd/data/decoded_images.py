"""Images that were decoded before bad files ended an attempt; the next one takes them over."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dskd.data.cache import place_of
from dskd.data.download import cache_folder
from dskd.data.image_source import ImageFiles
from dskd.data.path_list import PathList
from dskd.storage.atomic import part_for


class DecodedImages:
    """The decoded images of an attempt that failed, by name, size and times of each file.

    Args:
        files: The source files.
        key: What the images depend on besides the files.
        cache: The cache folder.
    """

    def __init__(self, files: ImageFiles, key: object, cache: Path | None) -> None:
        self.files = files
        self.path = cache_folder(cache) / f"unfinished-{place_of(files, key)}.safetensors"

    def read(self, names: PathList) -> tuple[dict[int, NDArray[np.uint8]], float | None]:
        """Reads what is there.

        Args:
            names: The wanted images.

        Returns:
            The images whose files have not changed, by the index of the name, and the largest value
            of those with 16 bits or more (`dskd.data.image_decoding.Decoded`).
        """
        try:
            with safe_open(self.path, framework="np") as file:
                stamps = json.loads(file.metadata()["stamps"])
                deepest = json.loads(file.metadata()["deepest"])
                images = file.get_tensor("images")
        except Exception:  # missing or damaged: all is decoded again
            return {}, None
        row_of = {(name, stamp): row for row, (name, stamp) in enumerate(stamps)}
        wanted = enumerate(self._stamps(names))
        return {index: images[row_of[key]] for index, key in wanted if key in row_of}, deepest

    def write(self, names: PathList, images: Tensor, deepest: float | None) -> None:
        """Writes images. Nothing happens if the disk does not take them.

        Args:
            names: Of their files.
            images: uint8, ``[N, C, height, width]``.
            deepest: See `read`.
        """
        facts = {"stamps": json.dumps(self._stamps(names)), "deepest": json.dumps(deepest)}
        with contextlib.suppress(Exception):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with part_for(self.path) as part:
                save_file({"images": images}, part, facts)

    def _stamps(self, names: PathList) -> list[tuple[str, str]]:
        """The name of each file, with what changes when the file does, as text."""
        facts = self.files.facts_of(names).tolist()
        return [(name, " ".join(map(str, row))) for name, row in zip(names, facts, strict=True)]

    def remove(self) -> None:
        """Removes the file, if there is one."""
        with contextlib.suppress(OSError):
            self.path.unlink()
