"""Parts of a data set: some classes, a validation split, a fraction of the training images.

No choice depends on the training seed. Images are chosen class by class, so that the images of a
class do not depend on the other classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dskd.data.dataset import Dataset, Samples
from dskd.errors import InputError, unknown

HELD_OUT = 0.2
"""Fraction of the images that become the test split if there is none and no fraction is set."""
_VALIDATION_SEED = 1
_FRACTION_SEED = 2


def choose_classes(dataset: Dataset, classes: int | Sequence[str]) -> Dataset:
    """Select some classes and number them from 0.

    Args:
        dataset: The data set with all classes.
        classes: Number of classes to select from the first on, or the names (or ids) of the
            classes in their new order.

    Returns:
        The data set with those classes; mean and std do not change.

    Raises:
        InputError: There are fewer than two classes, or a class is unknown or named twice.
    """
    chosen = _first(dataset, classes) if isinstance(classes, int) else _named(dataset, classes)
    if len(chosen) < 2:
        raise InputError(f"data.classes selects {len(chosen)} of the classes; select at least 2")
    if chosen == list(range(len(dataset.classes))):
        return dataset
    new_labels = torch.full((len(dataset.classes),), -1, dtype=torch.int64)
    new_labels[torch.tensor(chosen)] = torch.arange(len(chosen))

    def narrow(split: Samples) -> Samples:
        labels = new_labels[split.labels]
        indices = torch.nonzero(labels >= 0).flatten()
        return split.take(indices).relabelled(labels[indices])

    return replace(
        dataset,
        train=narrow(dataset.train),
        test=narrow(dataset.test),
        validation=narrow(dataset.validation) if dataset.validation else None,
        classes=tuple(dataset.classes[label] for label in chosen),
        ids=tuple(dataset.ids[label] for label in chosen) if dataset.ids else (),
    )


def split_validation(dataset: Dataset, val_fraction: float) -> Dataset:
    """Move a fraction of the training images to a validation split.

    Args:
        dataset: A data set without a validation split.
        val_fraction: Fraction of each class to move, at least 0 and below 1, rounded to whole
            images; at least one image of each class stays.

    Raises:
        InputError: ``val_fraction`` is out of range or moves no image, or there is a validation
            split already.
    """
    if not 0 <= val_fraction < 1:
        raise InputError(f"data.val_fraction must be at least 0 and below 1, got {val_fraction}")
    if val_fraction == 0:
        return dataset
    if dataset.validation is not None:
        raise InputError(
            f"{dataset.name} has a validation split of its own; drop data.val_fraction"
        )
    validation, train = hold_out(dataset.train, "val_fraction", val_fraction)
    return replace(dataset, train=train, validation=validation)


def hold_out(
    split: Samples, setting: Literal["val_fraction", "test_split"], fraction: float
) -> tuple[Samples, Samples]:
    """Hold out a fraction of each class, rounded to whole images; one image of each stays at least.

    Args:
        split: The training images.
        setting: The key of ``data`` that holds the fraction.
        fraction: The fraction.

    Returns:
        The images that are held out, and the rest.

    Raises:
        InputError: No image is held out.
    """
    held_out, rest = _divide(
        split.labels, lambda count: min(_round(count * fraction), count - 1), _VALIDATION_SEED
    )
    if len(held_out) == 0:
        raise InputError(
            f"data.{setting}={fraction:g} holds out no image of {len(split)}; give a larger one"
        )
    return split.take(held_out), split.take(rest)


def held_out_note(reason: str, test: Samples, train: Samples, fraction: float) -> str:
    """Says that images were held out as the test split.

    Args:
        reason: Why.
        test: The images that are held out.
        train: The rest.
        fraction: The fraction, ``data.test_split``.
    """
    return (
        f"{reason}: {len(test)} of the {len(test) + len(train)} training images are held out "
        f"(data.test_split={fraction:g}), and the student is tested on them"
    )


def take_fraction(dataset: Dataset, fraction: float) -> Dataset:
    """Select a fraction of the training images; a smaller fraction is a subset of a larger one.

    Args:
        dataset: The data set.
        fraction: Fraction of each class to select, above 0 and at most 1, rounded to whole images;
            at least one image of each class is selected.

    Raises:
        InputError: ``fraction`` is out of range.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"data.fraction must be above 0 and at most 1, got {fraction}")
    if fraction == 1:
        return dataset
    return replace(dataset, train=_part(dataset.train, fraction))


def take_test_fraction(dataset: Dataset, fraction: float) -> Dataset:
    """Select a fraction of the test images and of the validation images, as `take_fraction` does.

    Args:
        dataset: The data set.
        fraction: Fraction of each class to select, above 0 and at most 1.

    Raises:
        InputError: ``fraction`` is out of range.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"data.test_fraction must be above 0 and at most 1, got {fraction}")
    if fraction == 1:
        return dataset
    validation = _part(dataset.validation, fraction) if dataset.validation is not None else None
    return replace(dataset, test=_part(dataset.test, fraction), validation=validation)


def _part(split: Samples, fraction: float) -> Samples:
    """A fraction of each class of a split, and at least one image of each."""
    selected, _ = _divide(
        split.labels, lambda count: max(_round(count * fraction), 1), _FRACTION_SEED
    )
    return split.take(selected)


def _first(dataset: Dataset, count: int) -> list[int]:
    if count > len(dataset.classes):
        raise InputError(
            f"data.classes asks for {count} classes, but {dataset.name} has {len(dataset.classes)}"
        )
    return list(range(count))


def _named(dataset: Dataset, names: Sequence[str]) -> list[int]:
    labels = {name: label for label, name in enumerate(dataset.ids)}
    labels |= {name: label for label, name in enumerate(dataset.classes)}
    chosen: list[int] = []
    for name in [names] if isinstance(names, str) else names:
        if name not in labels:
            raise unknown("class", name, dataset.classes)
        if labels[name] in chosen:
            raise InputError(f"data.classes names {name!r} twice; name each class once")
        chosen.append(labels[name])
    return chosen


def _divide(labels: Tensor, take: Callable[[int], int], seed: int) -> tuple[Tensor, Tensor]:
    """Divide the images of each class at random into two parts.

    Args:
        labels: int64, ``[N]``.
        take: From the number of images of a class to the number in the first part.
        seed: Seed of the random choice.

    Returns:
        The indices of both parts, int64, ascending.
    """
    first = np.zeros(len(labels), bool)
    numbers = labels.numpy()
    for label in np.unique(numbers):
        members = np.flatnonzero(numbers == label)
        # NumPy guarantees that the numbers of the legacy generator never change.
        order = np.random.RandomState(seed).permutation(len(members))
        first[members[order[: take(len(members))]]] = True
    return torch.from_numpy(np.flatnonzero(first)), torch.from_numpy(np.flatnonzero(~first))


def _round(number: float) -> int:
    return int(number + 0.5)
