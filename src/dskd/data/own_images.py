"""From the images that were found in a source to the data set, in memory or streamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dskd.data.assembly import Outcome, assemble
from dskd.data.cache import cache_file, cached
from dskd.data.dataset import Dataset, Samples, Split, channel_statistics
from dskd.data.decoded_images import DecodedImages
from dskd.data.image_decoding import decode_all
from dskd.data.image_source import ImageSource
from dskd.data.path_list import PathList
from dskd.data.read_options import ReadOptions
from dskd.data.sampling import current_sampling
from dskd.data.streamed_images import check_images, known_check, stream_images, why_streamed
from dskd.data.subset import HELD_OUT
from dskd.errors import InputError


def load_images(source: ImageSource, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """The data set of a source.

    Without a test split, ``test_split`` of the training images (0.2 if it is not set) become
    one. Images become upright RGB or gray, see `dskd.data.pixels.convert`.

    Args:
        source: What was found.
        options: How it is read.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`.

    Returns:
        Images ``[N, C, height, width]``; mean and standard deviation are those of the training
        split.

    Raises:
        InputError: Images cannot be used, or have different sizes and ``size`` is None.
    """
    if source.evaluation and options.test_split:
        raise InputError(
            f"{source.files.where(source.evaluation)} is the test split; drop data.test_split"
        )
    if source.validation and options.val_fraction:
        raise InputError(
            f"{source.files.where(source.validation)} is the validation split; drop "
            "data.val_fraction"
        )
    held_out = 0.0 if source.evaluation else options.test_split or HELD_OUT
    return read_images(source, replace(options, test_split=held_out), cache_dir)


def read_images(source: ImageSource, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """The data set of a source that need not have a test split, see `load_images`.

    Raises:
        InputError: Images cannot be used, or have different sizes and ``size`` is None.
    """
    note = why_streamed(source, options)
    key = options.size, options.form, options.skip_bad, options.test_split
    place = source.name, source.files, key, cache_dir
    sampling = current_sampling()
    if sampling is not None:
        known = known_check(source, options, cache_dir) if note else cache_file(*place).exists()
        sample = None if known else sampling.take(source, options, in_memory=not note)
        if sample is not None:
            return stream_images(source, options, note, sample, sampling.names)
    if note:
        return stream_images(source, options, note, check_images(source, options, cache_dir))
    return cached(*place, lambda: _in_memory(source, options, cache_dir))


def _in_memory(source: ImageSource, options: ReadOptions, cache_dir: Path | None) -> Dataset:
    """The data set with all images in memory."""
    names = source.all_names()
    kept = DecodedImages(source.files, (options.size, options.form), cache_dir)
    found = decode_all(source.files, names, options.size, options.form, *kept.read(names))
    if (source.bad or found.bad) and not options.skip_bad:
        kept.write(PathList(names[index] for index in found.good), found.images, found.deepest)
    else:
        kept.remove()

    def split(rows: slice, labels: Tensor, names: PathList) -> Samples:
        return Split(found.images[rows], labels, tuple(names))

    def statistics(train: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return channel_statistics(train.images)

    outcome = Outcome(found.good, found.bad, found.deepest, split, statistics)
    return assemble(source, options, outcome)
