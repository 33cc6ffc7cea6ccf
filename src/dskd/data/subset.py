"""Taking part of a data set: some classes, a validation part, a share of the training images.

Every choice is the same whatever the training seed, so that runs differ only in what they mean to.
Images are chosen class by class, so those of a class do not depend on which others are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dskd.data.dataset import Dataset, Split
from dskd.errors import InputError, unknown

_HOLDOUT_SEED = 1
_SHARE_SEED = 2


def choose_classes(dataset: Dataset, classes: int | Sequence[str]) -> Dataset:
    """Keep some classes and number them from 0.

    Args:
        dataset: All classes.
        classes: How many of the first to keep, or the names of those to keep, in the order they
            are to have; where classes have ids, these are names too.

    Returns:
        The data set with those classes; mean and std stay those of the whole.

    Raises:
        InputError: Fewer than two, more than there are, unknown or named twice.
    """
    kept = _first(dataset, classes) if isinstance(classes, int) else _named(dataset, classes)
    if len(kept) < 2:
        raise InputError(f"data.classes keeps {len(kept)} of the classes; keep at least 2")
    if kept == list(range(len(dataset.classes))):
        return dataset
    new = torch.full((len(dataset.classes),), -1, dtype=torch.int64)
    new[torch.tensor(kept)] = torch.arange(len(kept))

    def narrow(split: Split) -> Split:
        labels = new[split.labels]
        indices = torch.nonzero(labels >= 0).flatten()
        return Split(split.images[indices], labels[indices])

    return replace(
        dataset,
        train=narrow(dataset.train),
        test=narrow(dataset.test),
        validation=narrow(dataset.validation) if dataset.validation else None,
        classes=tuple(dataset.classes[label] for label in kept),
        ids=tuple(dataset.ids[label] for label in kept) if dataset.ids else (),
    )


def split_validation(dataset: Dataset, val_fraction: float) -> Dataset:
    """Split a validation part off the training images.

    Args:
        dataset: Without a validation part.
        val_fraction: The part of each class to hold out, from 0 to below 1, rounded to whole images;
            at least one image of a class stays.

    Raises:
        InputError: ``val_fraction`` is out of range, or holds out no image.
    """
    if not 0 <= val_fraction < 1:
        raise InputError(f"data.val_fraction must be at least 0 and below 1, got {val_fraction}")
    if val_fraction == 0:
        return dataset
    held, kept = _divide(
        dataset.train.labels,
        lambda count: min(_round(count * val_fraction), count - 1),
        _HOLDOUT_SEED,
    )
    if len(held) == 0:
        raise InputError(
            f"data.val_fraction {val_fraction} holds out no image of {len(dataset.train)}; give more"
        )
    return replace(dataset, train=dataset.train.take(kept), validation=dataset.train.take(held))


def take_fraction(dataset: Dataset, fraction: float) -> Dataset:
    """Keep a share of the training images; a smaller share is part of a larger one.

    Args:
        dataset: The data set.
        fraction: The part of each class to keep, above 0, at most 1, rounded to whole images, but
            at least one.

    Raises:
        InputError: ``fraction`` is out of range.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"data.fraction must be above 0 and at most 1, got {fraction}")
    if fraction == 1:
        return dataset
    kept, _ = _divide(
        dataset.train.labels, lambda count: max(_round(count * fraction), 1), _SHARE_SEED
    )
    return replace(dataset, train=dataset.train.take(kept))


def _first(dataset: Dataset, count: int) -> list[int]:
    if count > len(dataset.classes):
        raise InputError(
            f"data.classes asks for {count} classes, but {dataset.name} has {len(dataset.classes)}"
        )
    return list(range(count))


def _named(dataset: Dataset, names: Sequence[str]) -> list[int]:
    labels = {name: label for label, name in enumerate(dataset.ids)}
    labels |= {name: label for label, name in enumerate(dataset.classes)}
    kept: list[int] = []
    for name in [names] if isinstance(names, str) else names:
        if name not in labels:
            raise unknown("class", name, dataset.classes)
        if labels[name] in kept:
            raise InputError(f"data.classes names {name!r} twice; name each class once")
        kept.append(labels[name])
    return kept


def _divide(labels: Tensor, take: Callable[[int], int], seed: int) -> tuple[Tensor, Tensor]:
    """Divide the images of each class.

    Args:
        labels: int64, ``[N]``.
        take: How many of a class go to the first part, given how many there are.
        seed: Fixes which.

    Returns:
        The indices of both parts, int64, ascending.
    """
    first = np.zeros(len(labels), bool)
    numbers = labels.numpy()
    for label in np.unique(numbers):
        members = np.flatnonzero(numbers == label)
        # NumPy promises that the legacy generator never changes what it draws.
        order = np.random.RandomState(seed).permutation(len(members))
        first[members[order[: take(len(members))]]] = True
    return torch.from_numpy(np.flatnonzero(first)), torch.from_numpy(np.flatnonzero(~first))


def _round(number: float) -> int:
    return int(number + 0.5)
