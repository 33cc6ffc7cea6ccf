"""Epoch plans with images that have no labels: some of them join every step.

The labelled images have the plan that they have alone. So an epoch is one pass over them, and they
come in the same order and views with or without the others.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from dskd.data.augmentation import NO_AUGMENTATION, Augmentation
from dskd.data.epoch_plan import (
    MIN_SAMPLES,
    EpochPlan,
    draw_plan,
    random_stream,
    step_bounds,
)
from dskd.errors import InputError

_FIRST_STREAM = 10
"""Of the random streams of an epoch; those of the labelled images come before."""


def step_sizes(batch_size: int, share: float, world_size: int = 1) -> tuple[int, int]:
    """How many images of a step have labels, and how many have none.

    Args:
        batch_size: Images of a step, over all processes.
        share: The share of them that have no label, between 0 and 1.
        world_size: Number of processes that share a step. Each gets images of both kinds.

    Raises:
        InputError: The step is too small for both.

    Example:
        >>> step_sizes(64, 0.5), step_sizes(8, 0.9)
        ((32, 32), (2, 6))
    """
    least = MIN_SAMPLES * world_size
    if batch_size < least + world_size:
        raise InputError(
            f"train.batch_size={batch_size} leaves no room for data.unlabelled beside "
            f"{least} labelled images; set {least + world_size} or more"
        )
    unlabelled = min(max(round(share * batch_size), world_size), batch_size - least)
    return batch_size - unlabelled, unlabelled


def unlabelled_bounds(
    labelled: int, batch_size: int, share: float, world_size: int = 1
) -> tuple[int, ...]:
    """Where the steps begin and end in the sequence of an epoch's images without labels.

    Every step has as many, but for the last one: if it has fewer or more labelled images, it has
    others in proportion. Their number in an epoch does not depend on the number of processes.

    Args:
        labelled: Number of labelled images.
        batch_size: As for `step_sizes`.
        share: As for `step_sizes`.
        world_size: As for `step_sizes`.

    Example:
        >>> unlabelled_bounds(10, 8, 0.5)
        (0, 4, 8, 10)
    """
    own, others = step_sizes(batch_size, share, world_size)
    return tuple(round(bound * others / own) for bound in step_bounds(labelled, own, world_size))


def largest_joint_batch(batch_size: int, share: float, world_size: int = 1) -> int:
    """Most samples that one process can have in a step.

    Example:
        >>> largest_joint_batch(64, 0.5)
        69
    """
    own, others = step_sizes(batch_size, share, world_size)
    joining = MIN_SAMPLES * world_size - 1  # labelled images of a last step, in the one before it
    joined = batch_size + joining + math.ceil(joining * others / own)
    # Both kinds and their rounding can be uneven.
    return math.ceil(joined / world_size) + 3


def draw_joint_plan(
    seed: int,
    epoch: int,
    counts: tuple[int, int],
    sizes: tuple[int, float, int],
    padding: int = 0,
    flip: bool = False,
    views_of_each: Tensor | None = None,
    augmentation: Augmentation = NO_AUGMENTATION,
) -> EpochPlan:
    """Draw the plan of an epoch, with a plan of the images without labels.

    Over the epochs, every image without a label is drawn once before one is drawn again. If one
    epoch draws an image twice, it has the same view both times.

    Args:
        seed: As for `dskd.data.epoch_plan.draw_plan`.
        epoch: As there.
        counts: How many images have labels, and how many have none.
        sizes: Batch size, share and world size, as for `step_sizes`.
        padding: As there.
        flip: As there.
        views_of_each: As there, first for the labelled images, then for the others.
        augmentation: As there.

    Example:
        >>> plan = draw_joint_plan(0, 0, (4, 8), (4, 0.5, 1))
        >>> len(plan.order), len(plan.unlabelled.order), plan.unlabelled.bounds
        (4, 4, (0, 2, 4))
    """
    own = others = views_of_each
    if views_of_each is not None:
        own, others = views_of_each[: counts[0]], views_of_each[counts[0] :]
    plan = draw_plan(seed, epoch, counts[0], padding, flip, own, augmentation)
    bounds = unlabelled_bounds(counts[0], *sizes)
    drawn = draw_plan(
        seed, epoch, counts[1], padding, flip, others, augmentation, first_stream=_FIRST_STREAM
    )
    order = _pass_order(seed, epoch * bounds[-1], bounds[-1], counts[1])
    return replace(plan, unlabelled=replace(drawn, order=order, bounds=bounds))


def _pass_order(seed: int, start: int, count: int, images: int) -> Tensor:
    """A part of the endless sequence of passes over the images, each in an order of its own."""
    parts = [torch.empty(0, dtype=torch.int64)]  # a rehearsed step may have none
    for number in range(start // images, -(-(start + count) // images)):
        order = random_stream(seed, number, _FIRST_STREAM).permutation(images)
        first = number * images
        parts.append(torch.from_numpy(order[max(start - first, 0) : start + count - first]))
    return torch.cat(parts)
