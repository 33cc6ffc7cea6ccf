"""The handwritten digits that come with scikit-learn; they need no download."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from dskd.data.dataset import Dataset, Split, channel_statistics
from dskd.data.read_options import ReadOptions
from dskd.errors import InputError
from dskd.runtime.memory import require_memory

_TEST = 500
_SEED = 0


def load(root: Path | None, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """Load the digits: 1797 gray images of 8x8, ten classes.

    The split into 1297 training and 500 test images is fixed and stratified by class.

    Source: Alpaydin & Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository; the copy in scikit-learn is that set's test part.

    Args:
        root: Must be None: the files come with scikit-learn.
        options: Its size is the height and width to resize to (bilinear); None keeps 8.
        cache_dir: Not used.

    Returns:
        Images ``[N, 1, size, size]``.

    Raises:
        InputError: A root is given, or the images do not fit into memory.
    """
    if root is not None:
        raise InputError("data.root is not used by 'digits', which come with scikit-learn; drop it")
    digits = _read()
    levels = digits.levels
    if options.size not in (None, 8):
        levels = _resize(levels, options.size)
    images = torch.from_numpy(levels).unsqueeze(1)
    whole = Split(images, torch.from_numpy(digits.labels))
    training = whole.take(torch.from_numpy(digits.train))
    mean, std = channel_statistics(training.images)
    return Dataset(
        name="digits",
        train=training,
        test=whole.take(torch.from_numpy(digits.test)),
        classes=digits.classes,
        mean=mean,
        std=std,
    )


class _Digits(NamedTuple):
    """The images, and the rows of the training and test images."""

    levels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray


@cache
def _read() -> _Digits:
    """Reads the file once in a process, since a text of 1797 lines takes longer than an epoch."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(levels)), test_size=_TEST, stratify=digits.target, random_state=_SEED
    )
    classes = tuple(str(name) for name in digits.target_names)
    return _Digits(levels, digits.target.astype(np.int64), classes, np.sort(train), np.sort(test))


def _resize(levels: np.ndarray, size: int) -> np.ndarray:
    require_memory(len(levels) * size * size, f"{len(levels)} digits of {size}x{size}")
    bilinear = Image.Resampling.BILINEAR
    return np.stack(
        [np.asarray(Image.fromarray(level).resize((size, size), bilinear)) for level in levels]
    )
