"""Your own images, if they are decoded whenever they are used."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path

import psutil
import torch
from torch import Tensor

from dskd.data.assembly import Outcome, assemble
from dskd.data.cache import place_of
from dskd.data.catalog import Loading
from dskd.data.dataset import Dataset, Samples, channel_statistics
from dskd.data.download import cache_folder
from dskd.data.file_split import FileSplit, spread
from dskd.data.image_decoding import Checked, check_all, without
from dskd.data.image_files import BadImageError, opened
from dskd.data.image_source import ImageSource
from dskd.data.path_list import PathList
from dskd.data.read_options import ReadOptions
from dskd.runtime.launch import local_world_size
from dskd.runtime.memory import readable
from dskd.storage.atomic import replace_file

SAMPLED = 512
"""Training images that the mean and the standard deviation are measured on."""
_PIECE = 64
"""Images that are in memory at a time meanwhile."""


def must_stream(count: int, loading: Loading, workers: int, bytes_of_one: Callable[[], int]) -> str:
    """Why the images are streamed, in a line; empty if they are kept in memory.

    With ``data.loading=auto`` they are kept if they take at most a quarter of the machine's memory,
    shared by the processes that torchrun started on it (and of the GPU's, if there is one). What is
    free does not count: a run that is resumed must decide as before, and all processes alike.

    Args:
        count: Number of images.
        loading: ``data.loading``.
        workers: ``data.workers``.
        bytes_of_one: Returns the bytes of an image as it is used.
    """
    if loading == "stream":
        return f"{count} images are decoded by {_workers(workers)} whenever they are used"
    if loading == "memory":
        return ""
    needed = count * bytes_of_one()
    limit = psutil.virtual_memory().total // 4 // local_world_size()
    if torch.cuda.is_available():
        limit = min(limit, torch.cuda.get_device_properties(0).total_memory // 4)
    if needed <= limit:
        return ""
    return (
        f"{count} images would take {readable(needed)} of memory, more than {readable(limit)}, so "
        f"they are decoded by {_workers(workers)} whenever they are used (data.loading=stream)"
    )


def _workers(count: int) -> str:
    return f"{count} worker process{'es' * (count > 1)}" if count else "the training process"


def why_streamed(source: ImageSource, options: ReadOptions) -> str:
    """`must_stream` for the images of a source."""
    count = sum(map(len, source.images.values()))

    def bytes_of_one() -> int:
        return options.form.channels * _pixels(source, options)

    return must_stream(count, options.loading, options.workers, bytes_of_one)


def _pixels(source: ImageSource, options: ReadOptions) -> int:
    """Pixels of an image as it is used: of the first one, if all keep their size."""
    if options.size is not None:
        return options.size**2
    for split in source.images.values():
        for name, _ in split:
            with contextlib.suppress(Exception), opened(source.files, name, options.form) as image:
                return image.width * image.height
    return 1


def statistics_of_some(
    train: Samples, decoded: Collection[str] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of at most `SAMPLED` images.

    Args:
        train: The training split.
        decoded: The names of the images that are known to be good; None if all are.
    """
    few = spread(len(train), SAMPLED)
    if decoded is not None:
        known = [row for row, name in enumerate(train.names) if name in decoded]
        few = torch.tensor(known)[spread(len(known), SAMPLED)] if known else few
    return channel_statistics(*map(train.images_at, torch.split(few, _PIECE)))


def stream_images(
    source: ImageSource,
    options: ReadOptions,
    note: str,
    found: Checked,
    decoded: Collection[str] | None = None,
) -> Dataset:
    """The data set with all images in their files.

    Args:
        source: What was found.
        options: How it is read.
        note: A line for the user.
        found: Which images can be used.
        decoded: The names of the images that were decoded; None if all were.

    Raises:
        InputError: Images cannot be used.
    """
    size = options.size
    shape = options.form.channels, size or found.height, size or found.width

    def split(_: slice, labels: Tensor, names: PathList) -> Samples:
        files = source.files.part(names)
        return FileSplit(files, labels, shape, size is not None, options.form, options.workers)

    def statistics(train: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return statistics_of_some(train, decoded)

    outcome = Outcome(
        found.good, found.bad, found.deepest, split, statistics, (note,) if note else ()
    )
    return assemble(source, options, outcome)


def check_images(source: ImageSource, options: ReadOptions, cache_dir: Path | None) -> Checked:
    """Decodes each image once to see that it can be used.

    The outcome is cached, until a file of the source changes.

    Args:
        source: What was found.
        options: How it is read.
        cache_dir: The cache folder, see `dskd.data.download.cache_folder`.

    Raises:
        InputError: The images have different sizes and ``size`` is None.
    """
    known = known_check(source, options, cache_dir)
    if known is not None:
        return known
    files, one_size = source.files, options.size is None
    found = check_all(files, source.all_names(), one_size, options.form)
    facts = {key: value for key, value in asdict(found).items() if key not in ("good", "bad")}
    facts["bad"] = {row: (str(error), error.reason) for row, error in found.bad.items()}
    facts["stamp"] = files.stamp
    path = _path(source, options, cache_dir)
    with contextlib.suppress(OSError):  # a full disk costs the next run the time
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(facts).encode())
    return found


def known_check(
    source: ImageSource, options: ReadOptions, cache_dir: Path | None
) -> Checked | None:
    """What an earlier `check_images` found; None if it is not known."""
    try:
        known = json.loads(_path(source, options, cache_dir).read_bytes())
        if known.pop("stamp") != source.files.stamp:
            return None
        bad = {int(row): BadImageError(*error) for row, error in known.pop("bad").items()}
        count = sum(map(len, source.images.values()))
        return Checked(without(bad, count), bad, **known)
    except Exception:  # missing or damaged: all is checked again
        return None


def _path(source: ImageSource, options: ReadOptions, cache_dir: Path | None) -> Path:
    # Rows are cached, and a folder's images with and without labels lie in different orders.
    key = "checked", source.name, options.size is None, options.form
    place = place_of(source.files, key)
    return cache_folder(cache_dir) / f"checked-{place}.json"
