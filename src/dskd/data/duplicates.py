"""Find the same image in two splits, by a hash of its pixels or of its file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from dskd.data.dataset import Samples
from dskd.data.file_split import FileSplit
from dskd.data.folder_files import ListedFiles

_CHUNK = 256
"""Images between two looks at the clock."""


_PIECE = 64
"""Images that are in memory at a time."""


@dataclass(frozen=True)
class ImageHashes:
    """Hashes of a split's images.

    Attributes:
        indices: The index of an image by its hash.
        compared: How many images count as compared.
    """

    indices: Mapping[bytes, Sequence[int]]
    compared: int


def hash_splits(splits: Mapping[str, Samples], seconds: float) -> dict[str, ImageHashes]:
    """Hashes the images of some splits, so that equal images can be found.

    Images in memory are compared by their pixels, images in files by the bytes of the file. Of the
    files in a folder, only those are read whose size another split has, too.

    Args:
        splits: By name.
        seconds: When the time is over, the other images are left out. Each split has an equal
            share, small splits come first, and what one leaves over goes to the next.

    Example:
        >>> from dskd.data.dataset import Split
        >>> images = torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2)
        >>> splits = {"test": Split(images[:1], torch.zeros(1, dtype=torch.int64)),
        ...     "training": Split(images, torch.zeros(3, dtype=torch.int64))}
        >>> found = hash_splits(splits, 10)
        >>> found["test"].indices.keys() & found["training"].indices.keys() == set(
        ...     found["test"].indices)
        True
    """
    start = time.monotonic()
    found: dict[str, ImageHashes] = {}
    by_size = sorted(splits.items(), key=lambda item: len(item[1]))
    for number, (name, split) in enumerate(by_size, 1):
        others = [other for other_name, other in splits.items() if other_name != name]
        end = start + seconds * number / len(splits)
        found[name] = _hashes(split, _candidates(split, others), end)
    return found


def _candidates(split: Samples, others: Sequence[Samples]) -> Tensor:
    """The images that may be in other splits: all, but for files of a size that is not there."""
    sizes = _file_sizes(split)
    there = [_file_sizes(other) for other in others]
    if sizes is None or any(one is None for one in there):
        return torch.arange(len(split))
    every = torch.cat([one for one in there if one is not None] or [sizes[:0]])
    return torch.isin(sizes, every).nonzero().flatten()


def _file_sizes(split: Samples) -> Tensor | None:
    """The size of each file, int64 ``[N]``; None for images that are not files of a folder."""
    if isinstance(split, FileSplit) and isinstance(split.files, ListedFiles):
        return torch.from_numpy(split.files.sizes.copy())
    return None


def _hashes(split: Samples, candidates: Tensor, end: float) -> ImageHashes:
    found: dict[bytes, list[int]] = {}
    contents = _contents(split, candidates)
    done = 0
    while done < len(candidates) and (not done or time.monotonic() < end):
        for index, content in islice(contents, _CHUNK):
            found.setdefault(hashlib.blake2b(content, digest_size=16).digest(), []).append(index)
            done += 1
    # A file of a size that no other split has is compared without being read.
    compared = len(split) if done == len(candidates) else done
    return ImageHashes(found, compared)


def _contents(split: Samples, indices: Tensor) -> Iterator[tuple[int, bytes]]:
    """Pixels or file content of some images, in a fixed order that is spread over the split."""
    mixed = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))
    for part in torch.split(indices[mixed], _PIECE):
        if isinstance(split, FileSplit):
            yield from ((index, split.files.read(split.names[index])) for index in part.tolist())
        else:
            images = split.images_at(part).cpu().contiguous().numpy()
            yield from zip(part.tolist(), (image.tobytes() for image in images), strict=True)
