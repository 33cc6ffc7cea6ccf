"""From the checked images of a source to a data set, with what the user should know."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dskd.data.dataset import Dataset, Samples
from dskd.data.image_files import BadImageError
from dskd.data.image_source import ImageSource, some
from dskd.data.path_list import PathList
from dskd.data.pixels import shallow
from dskd.data.read_options import ReadOptions
from dskd.data.subset import held_out_note, hold_out
from dskd.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """What became of the images of all splits, one split after the other.

    Attributes:
        good: The index of each image that can be used.
        bad: The error of each other image, by its index.
        deepest: The largest value of the images with 16 bits or more; None if there was none.
        split: Makes a split of some of the good images, from their rows, labels and names.
        statistics: Mean and standard deviation of the channels of the training split.
        notes: Further lines for the user.
    """

    good: Sequence[int]
    bad: Mapping[int, BadImageError]
    deepest: float | None
    split: Callable[[slice, Tensor, PathList], Samples]
    statistics: Callable[[Samples], tuple[tuple[float, ...], tuple[float, ...]]]
    notes: tuple[str, ...] = ()


def assemble(source: ImageSource, options: ReadOptions, outcome: Outcome) -> Dataset:
    """The data set of the images that can be used.

    Args:
        source: What was found.
        options: How it is read; its `test_split` is held out if there is no test split. Without
            classes, the first image is the test split, and nothing is held out.
        outcome: What became of its images.

    Raises:
        InputError: Some cannot be used and may not be left out, or none is left to train on.
    """
    bad = outcome.bad
    names = source.all_names() if bad else PathList()
    skipped = [*source.bad, *((names[index], error.reason) for index, error in bad.items())]
    if skipped and not options.skip_bad:
        raise unusable(str(source.files.root), skipped, list(bad.values()))
    splits = _splits(source, outcome)
    train = splits.pop(source.train)
    if len(train) == 0:
        raise unusable(str(source.files.root), skipped, list(bad.values()))
    validation = splits.get(source.validation) if source.validation else None
    test = splits[source.evaluation] if source.evaluation else None
    left_out = *_left_out(skipped), *_lost_classes(source, train)
    notes = [*source.notes, *left_out, *shallow(outcome.deepest), *outcome.notes]
    held_out = test is None
    if not source.classes:
        test, held_out = train.take(torch.tensor([0])), False
    if test is None:
        fraction = options.test_split or 0.0
        test, train = hold_out(train, "test_split", fraction)
        notes.append(held_out_note(source.no_test, test, train, fraction))
    mean, std = outcome.statistics(train)
    return Dataset(
        name=source.name,
        train=train,
        test=test,
        validation=validation,
        classes=tuple(source.classes),
        mean=mean,
        std=std,
        notes=tuple(notes),
        skipped=tuple(f"{name}: {reason}" for name, reason in skipped),
        test_is_held_out=held_out,
    )


def _splits(source: ImageSource, outcome: Outcome) -> dict[str, Samples]:
    """The splits by folder. Their images lie one split after the other."""
    splits: dict[str, Samples] = {}
    start = position = 0
    for part, images in source.images.items():
        stop = bisect_left(outcome.good, position + len(images))
        own = images.take(np.asarray(outcome.good[start:stop], np.int64) - position)
        labels = torch.from_numpy(own.labels)
        splits[part] = outcome.split(slice(start, stop), labels, own.names)
        start, position = stop, position + len(images)
    return splits


def unusable(
    where: str, bad: Sequence[tuple[str, str]], errors: Sequence[InputError] = ()
) -> InputError:
    """The error about images that cannot be used.

    Args:
        where: The source.
        bad: Their names, each with the reason.
        errors: The errors of those that were opened.
    """
    if len(bad) == 1 and errors:
        return InputError(f"{errors[0]}, or leave it out with data.skip_bad=true")
    return InputError(
        f"{_counted(bad)} in {where}: {_named(bad)}; replace or remove them, or leave "
        "them out with data.skip_bad=true"
    )


def _left_out(bad: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{_counted(bad)} and left out: {_named(bad)}"] if bad else []


def _lost_classes(source: ImageSource, train: Samples) -> list[str]:
    """A note on classes none of whose training images could be decoded."""
    lost = np.setdiff1d(source.images[source.train].labels, train.labels.numpy())
    names = [source.classes[label] for label in lost.tolist()]
    return [f"no training image is left of the classes {some(names)}"] if names else []


def _counted(bad: Sequence[tuple[str, str]]) -> str:
    """How many files cannot be used, for each reason."""
    reasons = [reason for _, reason in bad]
    counts = ", ".join(f"{one}: {reasons.count(one)}" for one in dict.fromkeys(reasons))
    return (
        f"{len(bad)} images cannot be used ({counts})"
        if len(bad) > 1
        else (f"1 image cannot be used ({reasons[0]})")
    )


def _named(bad: Sequence[tuple[str, str]]) -> str:
    return some([name for name, _ in bad])
