"""Check the data of a run: counts, bad files, class balance, images in two splits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import torch

from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.catalog import are_files
from dskd.data.dataset import Samples, Split
from dskd.data.duplicates import ImageHashes, hash_splits
from dskd.data.file_split import FileSplit, spread
from dskd.data.sampling import Sampling
from dskd.engine.check.findings import DataFindings, SharedImages, SplitCounts
from dskd.engine.teacher_labels import training_data
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, as_given, printable

log = logging.getLogger("dskd")

HASH_SECONDS = 10.0
"""Time to look for the same image in two splits."""
SHARED_PERCENT = 1.0
"""A run is not started if more of an evaluation split are training images, too."""
UNBALANCED = 10
"""The largest class has that many times the images of the smallest, or more: a warning."""
DECODE_SECONDS = 5.0
"""Time to decode images. If all take longer, a sample is decoded."""
TRAINING_SAMPLE, TEST_SAMPLE = 2000, 1000
"""Images of a sample that are used, at most."""
_UNSEEN = 64
"""Images that are used of a split without a decoded image."""
_SHOWN = 3


def load_with_bad_files(recipe: Recipe, objects: UserObjects) -> tuple[Dataset, Recipe]:
    """The data of a run, without the image files that cannot be read.

    Returns:
        The data set, and the recipe that loaded it. It has ``skip_bad`` set if a file cannot be
        read.

    Raises:
        InputError: The data cannot be loaded for another reason.
    """
    try:
        return training_data(recipe, objects), recipe
    except InputError:
        settings = recipe.data
        if settings.skip_bad or objects.data is not None or not are_files(settings.name):
            raise
        skipping = recipe.changed(data=settings.model_copy(update={"skip_bad": True}))
        try:
            data = training_data(skipping, objects)
        except InputError:
            data = None
        if data is None or not data.skipped:
            raise
    return data, skipping


def sampled_part(data: Dataset, sampling: Sampling) -> Dataset:
    """Some of the images that were decoded, held as the run holds all of them.

    Args:
        data: All images.
        sampling: What was decoded of them.
    """

    def part(split: Samples, most: int) -> Samples:
        if not isinstance(split, FileSplit):
            return split
        rows = [row for row, name in enumerate(split.names) if name in sampling.names]
        chosen = torch.tensor(rows) if rows else spread(len(split), _UNSEEN)
        few = split.take(chosen[spread(len(chosen), most)])
        return Split(few.images, few.labels, tuple(few.names)) if sampling.in_memory else few

    test, others = data.validation, data.unlabelled
    return replace(
        data,
        train=part(data.train, TRAINING_SAMPLE),
        test=part(data.test, TEST_SAMPLE),
        validation=None if test is None else part(test, TEST_SAMPLE),
        unlabelled=None if others is None else part(others, TRAINING_SAMPLE),
    )


def check_data(data: Dataset, skip_bad: bool, sampling: Sampling | None = None) -> DataFindings:
    """What is in the data.

    Args:
        data: Without bad files.
        skip_bad: Whether the run leaves bad files out.
        sampling: What was decoded, if not all images were.
    """
    decoded = sampling.decoded if sampling is not None else 0
    return DataFindings(
        data.name,
        data.shape,
        count_images(data),
        len(data.unlabelled) if data.unlabelled is not None else 0,
        [*data.skipped],
        skip_bad,
        shared_images(data),
        decoded,
    )


def count_images(data: Dataset) -> list[SplitCounts]:
    """The images of each class in each split."""
    found = []
    for split, samples in data.splits().items():
        if not data.classes or data.without_labels:
            found.append(SplitCounts(split, len(samples), {}))
            continue
        counts = torch.bincount(samples.labels.cpu(), minlength=len(data.classes)).tolist()
        per_class = dict(zip(data.classes, counts, strict=True))
        found.append(SplitCounts(split, len(samples), per_class))
    return found


def shared_images(data: Dataset, seconds: float = HASH_SECONDS) -> list[SharedImages]:
    """The images that are in two splits.

    Args:
        data: The data set.
        seconds: For reading and hashing.
    """
    splits = data.splits()
    hashes = hash_splits(splits, seconds)
    pairs = combinations(splits, 2)  # training comes first, so the second is for evaluation
    return [
        _shared(other, splits[other], hashes[other], split, splits[split], hashes[split])
        for other, split in pairs
    ]


def _shared(
    other: str,
    other_samples: Samples,
    other_hashes: ImageHashes,
    split: str,
    samples: Samples,
    hashes: ImageHashes,
) -> SharedImages:
    both = [one for one in hashes.indices if one in other_hashes.indices]
    examples = [
        (
            _name(samples, hashes.indices[one][0]),
            _name(other_samples, other_hashes.indices[one][0]),
        )
        for one in both[:_SHOWN]
    ]
    count = sum(len(hashes.indices[one]) for one in both)
    return SharedImages(split, other, count, hashes.compared, other_hashes.compared, examples)


def _name(samples: Samples, index: int) -> str:
    return printable(samples.names[index]) if len(samples.names) else f"image {index}"


def data_reasons(found: DataFindings) -> Iterator[str]:
    """Why a run should not be started with this data."""
    if found.bad_files and not found.skip_bad:
        yield (
            f"{_count(len(found.bad_files), 'image file')} cannot be read: "
            f"{_some(found.bad_files)}; repair or remove what is damaged, or leave it out with "
            "data.skip_bad=true"
        )
    training = found.splits[0]
    yield from untrained_classes(training)
    for shared in found.shared:
        if shared.other == training.split and _percent(shared) > SHARED_PERCENT:
            yield (
                f"{shared.images} of {shared.compared} compared {shared.split} images are training "
                f"images, too ({_pairs(shared)}), so the accuracy would be too high; remove them"
            )


def untrained_classes(training: SplitCounts) -> Iterator[str]:
    """Which classes nothing can be learned about."""
    if training.empty_classes:
        yield (
            f"{len(training.empty_classes)} of {len(training.per_class)} classes have no training "
            f"image: {_some(training.empty_classes)}; add images, or leave them out with "
            "data.classes"
        )


def data_warnings(found: DataFindings) -> Iterator[str]:
    """What to look at in the data."""
    if found.bad_files and found.skip_bad:
        files = _count(len(found.bad_files), "image file")
        yield f"data.skip_bad leaves out {files}: {_some(found.bad_files)}"
    yield from count_warnings(found.splits)
    training = found.splits[0].split
    for shared in found.shared:
        if shared.images and (shared.other != training or _percent(shared) <= SHARED_PERCENT):
            yield (
                f"the {shared.split} and the {shared.other} split share "
                f"{_count(shared.images, 'image')} ({_pairs(shared)})"
            )


def count_warnings(splits: list[SplitCounts]) -> Iterator[str]:
    """What to look at in the counts of images."""
    for counts in splits[1:]:
        if counts.empty_classes:
            yield (
                f"{len(counts.empty_classes)} of {len(counts.per_class)} classes have no image in "
                f"the {counts.split} split: {_some(counts.empty_classes)}"
            )
    counts = splits[0]
    if not counts.per_class:
        return
    (few, fewest), (many, most) = counts.extreme(False), counts.extreme(True)
    if fewest and most >= UNBALANCED * fewest:
        yield (
            f"the classes are unbalanced: {most} training images of {printable(many)!r}, {fewest} "
            f"of {printable(few)!r}"
        )


def log_counts(data: Dataset) -> None:
    """Logs what is odd about the counts of images."""
    counts = count_images(data)
    for warning in (*untrained_classes(counts[0]), *count_warnings(counts)):
        log.warning(as_given(warning))


def _percent(shared: SharedImages) -> float:
    return 100 * shared.images / max(shared.compared, 1)


def _pairs(shared: SharedImages) -> str:
    return ", ".join(f"{one} = {other}" for one, other in shared.examples)


def _count(number: int, what: str) -> str:
    """A number of things, as in ``1 image`` and ``2 images``."""
    return f"{number} {what}{'s' * (number != 1)}"


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
