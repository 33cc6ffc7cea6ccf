"""The epoch plan: every random choice of an epoch, drawn before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dskd.data.augmentation import NO_AUGMENTATION, Augmentation


@dataclass(frozen=True)
class EpochPlan:
    """The order of the samples and the augmented view of each, for one epoch.

    A view is one way to crop and flip an image. Its number is ``(dy * side + dx) * 2 + flip`` with
    ``side = 2 * padding + 1``. The operations of an `Augmentation` draw from `seeds`, and their
    views have no number.

    Attributes:
        order: int64 ``[N]``, a permutation of the samples.
        dy: int64 ``[N]``, vertical crop offset of each sample, from 0 to 2 * padding.
        dx: int64 ``[N]``, horizontal crop offset of each sample, from 0 to 2 * padding.
        flip: bool ``[N]``, whether a sample is mirrored left to right.
        seeds: int64 ``[N]``, a random number for each sample. Methods and augmentations draw from
            it.
        padding: Width of the border of zeros around the image before the crop, in pixels.
        epoch: Number of the epoch, from 0.
        augmentation: What else is done with the images.
        unlabelled: The plan of the images without labels that join the steps
            (`dskd.data.joint_plan`); None without them.
        bounds: Where the steps begin and end in `order`; None cuts it by the size of a batch.
    """

    order: Tensor
    dy: Tensor
    dx: Tensor
    flip: Tensor
    seeds: Tensor
    padding: int
    epoch: int = 0
    augmentation: Augmentation = NO_AUGMENTATION
    unlabelled: EpochPlan | None = None
    bounds: tuple[int, ...] | None = None

    @property
    def views(self) -> Tensor:
        """int64 ``[N]``: the number of each sample's view, below 2 (2 padding + 1)^2."""
        return (self.dy * _side(self.padding) + self.dx) * 2 + self.flip.long()

    def to(self, device: torch.device) -> EpochPlan:
        """Copy the plan to a device."""
        parts = {name: value.to(device) for name, value in vars(self).items() if name in _DRAWN}
        return replace(self, **parts)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
        """The sample indices of each step, int64 ``[B]`` (see `steps`).

        Args:
            batch_size: Samples of a step, over all processes.
            rank: The process whose share is returned.
            world_size: Number of processes that share a batch.
        """
        for share, _ in self.shares(batch_size, rank, world_size):
            yield self.order[share]

    def shares(
        self, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[slice, int]]:
        """Where a process finds its samples of each step, and the size of the whole batch.

        Args:
            batch_size: Samples of a step, over all processes.
            rank: The process whose share is returned.
            world_size: Number of processes that share a batch.

        Returns:
            For each step, a slice of `order` and the number of samples over all processes.
        """
        bounds = self.bounds or step_bounds(len(self.order), batch_size, world_size)
        for start, stop in pairwise(bounds):
            yield slice(start + rank, stop, world_size), stop - start


_DRAWN = ("order", "dy", "dx", "flip", "seeds")

MIN_SAMPLES = 2
"""Fewest samples of a step in each process: BatchNorm cannot train on one."""


def steps(num_samples: int, batch_size: int, world_size: int = 1) -> int:
    """Number of steps of an epoch.

    The last batch may be smaller. If it has fewer than `MIN_SAMPLES` samples for each process, it
    joins the batch before it.

    Args:
        num_samples: Size of the training split.
        batch_size: Samples of a step, over all processes.
        world_size: Number of processes that share a batch.

    Example:
        >>> steps(10, 4), steps(9, 4), steps(11, 4, world_size=2)
        (3, 2, 2)
    """
    return len(step_bounds(num_samples, batch_size, world_size)) - 1


def largest_batch(batch_size: int, world_size: int = 1) -> int:
    """Most samples that one process can have in a step.

    Example:
        >>> largest_batch(64), largest_batch(64, world_size=2)
        (65, 34)
    """
    return -(-(batch_size + MIN_SAMPLES * world_size - 1) // world_size)


def step_bounds(num_samples: int, batch_size: int, world_size: int = 1) -> list[int]:
    """Where the steps of an epoch begin and end, see `steps`.

    Example:
        >>> step_bounds(10, 4), step_bounds(9, 4)
        ([0, 4, 8, 10], [0, 4, 9])
    """
    bounds = [*range(0, num_samples, batch_size), num_samples]
    if len(bounds) > 2 and num_samples - bounds[-2] < MIN_SAMPLES * world_size:
        del bounds[-2]
    return bounds


def count_views(padding: int, flip: bool) -> int:
    """Number of different views of an image.

    Example:
        >>> count_views(4, flip=True), count_views(4, flip=False)
        (162, 81)
    """
    return _side(padding) ** 2 * (2 if flip else 1)


def draw_views(
    num_samples: int, padding: int, flip: bool, views: int, unlabelled: int = 0
) -> Tensor:
    """Draw the few views that each sample is limited to, all different.

    The result does not depend on the seed of a run, so that runs of all seeds share one cache of
    teacher outputs. Samples with labels have the same views with and without others.

    Args:
        num_samples: N, the size of the training split, without samples that have no label.
        padding: As for `draw_plan`.
        flip: As for `draw_plan`.
        views: V, the number of views of each sample, at most `count_views`.
        unlabelled: U, the number of samples without a label.

    Returns:
        int64 ``[N + U, V]``, numbers of views (see `EpochPlan.views`).

    Example:
        >>> draw_views(1, 1, False, 9).sort().values.tolist()
        [[0, 2, 4, 6, 8, 10, 12, 14, 16]]
    """
    total = count_views(padding, flip)
    counts = (num_samples, unlabelled)
    drawn = [_distinct(random_stream(0, kind, 6), n, total, views) for kind, n in enumerate(counts)]
    views_of_each = torch.from_numpy(np.concatenate(drawn))
    return views_of_each if flip else 2 * views_of_each


def _distinct(random: np.random.Generator, rows: int, total: int, count: int) -> NDArray[np.int64]:
    """Rows of ``count`` different numbers below ``total``, in no order."""
    found = np.empty((rows, count), np.int64)
    # Floyd's draw without replacement (Bentley and Floyd, CACM 1987), for all samples at once.
    for place, top in enumerate(range(total - count, total)):
        drawn = random.integers(0, top, rows, endpoint=True)
        taken = (found[:, :place] == drawn[:, None]).any(1)
        found[:, place] = np.where(taken, top, drawn)
    return found


def draw_plan(
    seed: int,
    epoch: int,
    num_samples: int,
    padding: int = 0,
    flip: bool = False,
    views_of_each: Tensor | None = None,
    augmentation: Augmentation = NO_AUGMENTATION,
    first_stream: int = 0,
) -> EpochPlan:
    """Draw the plan of an epoch.

    The plan is a pure function of the arguments, on every device and in every process. Each part
    has its own random stream, so that one setting (such as ``flip``) does not change the others.

    Args:
        seed: Seed of the run, 0 or more.
        epoch: Number of the epoch, from 0.
        num_samples: N, the size of the training split.
        padding: Width of the border of zeros before the random crop, in pixels; 0 for no crop.
        flip: Whether to mirror half of the samples.
        views_of_each: int64 ``[N, V]``, the views that each sample is limited to, drawn by
            `draw_views` with the same padding and flip; each is equally likely. None for all views.
            The rest of the plan is the same either way.
        augmentation: What else is done with the images.
        first_stream: Number of the first random stream; another number gives an unrelated plan.

    Example:
        >>> draw_plan(0, 0, 4).order.sort().values
        tensor([0, 1, 2, 3])
    """

    def stream(part: int) -> np.random.Generator:
        return random_stream(seed, epoch, first_stream + part)

    if views_of_each is None:
        dy, dx = (
            stream(part).integers(0, 2 * padding, num_samples, endpoint=True) for part in (1, 2)
        )
        flips = stream(3).integers(0, 2, num_samples) if flip else np.zeros(num_samples, np.int64)
    else:
        slots = stream(5).integers(0, views_of_each.shape[1], num_samples)
        cells, flips = np.divmod(views_of_each.numpy()[np.arange(num_samples), slots], 2)
        dy, dx = np.divmod(cells, _side(padding))
    return EpochPlan(
        order=torch.from_numpy(stream(0).permutation(num_samples)),
        dy=torch.from_numpy(dy),
        dx=torch.from_numpy(dx),
        flip=torch.from_numpy(flips.astype(bool)),
        seeds=torch.from_numpy(stream(4).integers(0, 2**63 - 1, num_samples)),
        padding=padding,
        epoch=epoch,
        augmentation=augmentation,
    )


def _side(padding: int) -> int:
    """Number of crop offsets in one direction."""
    return 2 * padding + 1


def random_stream(seed: int, epoch: int, part: int) -> np.random.Generator:
    """The random stream of one part of an epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, part])))


def draw_below(seeds: Tensor, count: int, below: int) -> Tensor:
    """Draw random integers from seeds alone, the same on every device and in every process.

    Source: SplitMix64, Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
    OOPSLA 2014.

    Args:
        seeds: int64 ``[B]``, such as `EpochPlan.seeds`.
        count: How many numbers to draw from each seed.
        below: Upper bound (exclusive), at most 2^32. The bias is below ``below / 2^63``.

    Returns:
        int64 ``[B, count]``, from 0 to ``below - 1``.

    Example:
        >>> draw_below(torch.tensor([1, 1]), 3, 10).tolist()
        [[2, 9, 5], [2, 9, 5]]
    """
    # int64 arithmetic wraps around, as the algorithm's unsigned arithmetic does.
    counter = torch.arange(1, count + 1, device=seeds.device)
    mixed = seeds[:, None] + counter * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ _shift_right(mixed, shift)) * factor
    return _shift_right(mixed ^ _shift_right(mixed, 31), 1) % below


def _shift_right(values: Tensor, places: int) -> Tensor:
    """A right shift that brings in zeros, as a shift of unsigned integers does."""
    return (values >> places) & ((1 << (64 - places)) - 1)
