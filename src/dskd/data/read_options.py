"""How the image files of a data set are read."""

from __future__ import annotations

from dataclasses import dataclass

from dskd.data.pixels import MAX_PIXELS, RGB, PixelForm
from dskd.errors import InputError


@dataclass(frozen=True)
class ReadOptions:
    """How image files are read.

    Attributes:
        size: Height and width of the images, see `dskd.data.pixels.square`; None keeps the data
            set's own.
        val_fraction: Fraction of the training images that is held out; None for the default.
        form: What pixels become.
        skip_bad: Leave out images that cannot be used.
    """

    size: int | None = None
    val_fraction: float | None = None
    form: PixelForm = RGB
    skip_bad: bool = False


def read_options(
    size: int | None,
    val_fraction: float | None,
    channels: int | None,
    value_range: tuple[float, float] | None,
    max_pixels: int | None,
    skip_bad: bool,
) -> ReadOptions:
    """The options, after checking each; see `dskd.data.registry.load_dataset` for them.

    Raises:
        InputError: One is out of range.
    """
    if size is not None and size < 1:
        raise InputError(f"data.size must be at least 1, got {size}")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise InputError(f"data.val_fraction must be at least 0 and below 1, got {val_fraction}")
    if channels not in (None, 1, 3):
        raise InputError(f"data.channels must be 1 for gray or 3 for RGB, got {channels}")
    if max_pixels is not None and max_pixels < 1:
        raise InputError(f"data.max_pixels must be at least 1, got {max_pixels}")
    if value_range is not None:
        value_range = _range(*value_range)
    form = PixelForm(channels or 3, value_range, max_pixels or MAX_PIXELS)
    return ReadOptions(size, val_fraction, form, skip_bad)


def _range(low: float, high: float) -> tuple[float, float]:
    if not low < high:
        raise InputError(
            f"data.value_range must be a lower and a higher value, got [{low:g}, {high:g}]"
        )
    return float(low), float(high)
