"""How the image files of a data set are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, get_args

from dskd.data.augmentation import Interpolation
from dskd.data.catalog import Loading
from dskd.data.pixels import MAX_PIXELS, RGB, PixelForm
from dskd.errors import InputError, unknown
from dskd.runtime import launch


class ImageOptions(TypedDict, total=False):
    """How image files are read, in `dskd.data.registry.load_dataset`.

    Attributes:
        channels: 3 for RGB or 1 for gray. None means RGB.
        value_range: Lowest and highest value of a pixel, which become 0 and 255.
        max_pixels: Most pixels of an image file; None for `dskd.data.pixels.MAX_PIXELS`.
        skip_bad: Leave out image files that cannot be used, and list them.
        crop_pct: The images are resized so that their shorter side is ``size / crop_pct``, and the
            centre is cropped.
        interpolation: How images are resized, ``bilinear`` or ``bicubic``; None averages blocks of
            pixels where the factor is whole, and is bicubic otherwise.
        loading: ``memory`` decodes all images once, ``stream`` decodes them at every use, and
            ``auto`` streams what does not fit into memory.
        workers: Processes that decode streamed images; 0 decodes in this process. None starts one
            for each core, and at most 8.
        image_column: Name of the column, or of the part of a sample, with the image or its path.
        label_column: The same for the label.
        split_column: Name of the column with the split.
        shards: Paths or URLs of tar shards, with braces and ``*``.
        hub: Name of a data set on the Hub of Hugging Face.
    """

    channels: int | None
    value_range: tuple[float, float] | None
    max_pixels: int | None
    skip_bad: bool
    crop_pct: float
    interpolation: Interpolation | None
    loading: Loading
    workers: int | None
    image_column: str | None
    label_column: str | None
    split_column: str | None
    shards: str | Sequence[str] | None
    hub: str | None


@dataclass(frozen=True)
class ReadOptions:
    """How image files are read.

    Attributes:
        size: Height and width of the images, see `dskd.data.pixels.square`; None keeps the data
            set's own.
        test_split: Fraction of the training images that becomes the test split; None for the
            default.
        val_fraction: Fraction that is held out for validation afterwards. Here it is only refused
            where there is a validation split.
        form: What pixels become.
        skip_bad: Leave out images that cannot be used.
        loading: Whether images are decoded once or at every use, see `ImageOptions`.
        workers: Processes that decode images at every use.
        image_column: See `ImageOptions`; None for the usual name.
        label_column: See `ImageOptions`; None for the usual name.
        split_column: See `ImageOptions`; None for the usual name.
        shards: See `ImageOptions`.
        hub: See `ImageOptions`.
    """

    size: int | None = None
    test_split: float | None = None
    form: PixelForm = RGB
    skip_bad: bool = False
    loading: Loading = "auto"
    workers: int = 0
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    shards: tuple[str, ...] = ()
    hub: str | None = None
    val_fraction: float = 0.0


def read_options(
    size: int | None,
    test_split: float | None,
    *,
    channels: int | None = None,
    value_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    crop_pct: float = 1.0,
    interpolation: Interpolation | None = None,
    loading: Loading = "auto",
    workers: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    shards: str | Sequence[str] | None = None,
    hub: str | None = None,
) -> ReadOptions:
    """The options, after checking each; see `ImageOptions`.

    Raises:
        InputError: One is out of range.
    """
    if size is not None and size < 1:
        raise InputError(f"data.size must be at least 1, got {size}")
    if test_split is not None and not 0 < test_split < 1:
        raise InputError(f"data.test_split must be above 0 and below 1, got {test_split}")
    if channels not in (None, 1, 3):
        raise InputError(f"data.channels must be 1 for gray or 3 for RGB, got {channels}")
    if max_pixels is not None and max_pixels < 1:
        raise InputError(f"data.max_pixels must be at least 1, got {max_pixels}")
    if value_range is not None:
        value_range = _range(*value_range)
    if not 0 < crop_pct <= 1:
        raise InputError(f"data.crop_pct must be above 0 and at most 1, got {crop_pct}")
    if crop_pct != 1 and size is None:
        raise InputError("data.crop_pct needs data.size, to which the images are resized")
    for name, value, known in (
        ("data.interpolation", interpolation, (None, *get_args(Interpolation))),
        ("data.loading", loading, get_args(Loading)),
    ):
        if value not in known:
            raise unknown(name, str(value), map(str, known))
    if workers is not None and workers < 0:
        raise InputError(f"data.workers must be 0 or more, got {workers}")
    form = PixelForm(channels or 3, value_range, max_pixels or MAX_PIXELS, crop_pct, interpolation)
    return ReadOptions(
        size,
        test_split,
        form,
        skip_bad,
        loading,
        default_workers() if workers is None else workers,
        image_column,
        label_column,
        split_column,
        (shards,) if isinstance(shards, str) else tuple(shards or ()),
        hub,
    )


def default_workers() -> int:
    """Worker processes by default: one for each core that this process may use, and at most 8."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    return max(1, min(8, cores // launch.local_world_size()))


def _range(low: float, high: float) -> tuple[float, float]:
    if not low < high:
        raise InputError(
            f"data.value_range must be a lower and a higher value, got [{low:g}, {high:g}]"
        )
    return float(low), float(high)
