"""The epoch plan: all that is random about an epoch, drawn up front."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class EpochPlan:
    """The order of the images, and the view of each, for one epoch.

    Attributes:
        order: int64 ``[N]``, a permutation of the images.
        dy: int64 ``[N]``, each image's vertical crop offset, from 0 to 2 * padding.
        dx: int64 ``[N]``, the horizontal one.
        flip: bool ``[N]``, mirrored left to right or not.
        seeds: int64 ``[N]``, a number for each image, for whatever else a method draws.
        padding: Zeros around the image before the crop, in pixels.
        epoch: Which epoch, from 0.
    """

    order: Tensor
    dy: Tensor
    dx: Tensor
    flip: Tensor
    seeds: Tensor
    padding: int
    epoch: int = 0

    @property
    def views(self) -> Tensor:
        """int64 ``[N]``: names each image's view, from 0 to 2 (2 padding + 1)^2 - 1."""
        return (self.dy * _side(self.padding) + self.dx) * 2 + self.flip.long()

    def to(self, device: torch.device) -> EpochPlan:
        """The same plan on a device, brought there at once."""
        parts = {name: value.to(device) for name, value in vars(self).items() if name in _DRAWN}
        return replace(self, **parts)

    def batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """The images of each step, int64 ``[B]``, in order (see `steps`).

        Args:
            batch_size: Images a step.
            rank: Which process's share of them is given.
            world: How many processes share them.
        """
        for part in self.slices(batch_size, rank, world):
            yield self.order[part]

    def slices(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[slice]:
        """Where the images of each step stand in the order; see `batches`."""
        for start, stop in pairwise(_bounds(len(self.order), batch_size, world)):
            yield slice(start + rank, stop, world)


_DRAWN = ("order", "dy", "dx", "flip", "seeds")

LEAST = 2
"""Images of a step for each process, at least: BatchNorm cannot learn from one."""


def steps(num_samples: int, batch_size: int, world: int = 1) -> int:
    """Steps of an epoch: the last batch may be odd, but never of one image for a process.

    A lone last image joins the batch before it, and so do others that are too few for all.

    Args:
        images: Of the training split.
        batch_size: Images a step.
        world: How many processes share each batch.

    Example:
        >>> steps(10, 4), steps(9, 4), steps(11, 4, world=2)
        (3, 2, 2)
    """
    return len(_bounds(num_samples, batch_size, world)) - 1


def largest_batch(batch_size: int, world: int = 1) -> int:
    """Images that a process has in a step at most.

    Example:
        >>> largest_batch(64), largest_batch(64, world=2)
        (65, 34)
    """
    return -(-(batch_size + LEAST * world - 1) // world)


def _bounds(num_samples: int, batch_size: int, world: int) -> list[int]:
    bounds = [*range(0, num_samples, batch_size), num_samples]
    if len(bounds) > 2 and num_samples - bounds[-2] < LEAST * world:
        del bounds[-2]
    return bounds


def count_views(padding: int, flip: bool) -> int:
    """How many views of an image there are.

    Example:
        >>> count_views(4, flip=True), count_views(4, flip=False)
        (162, 81)
    """
    return _side(padding) ** 2 * (2 if flip else 1)


def draw_views(num_samples: int, padding: int, flip: bool, views: int) -> Tensor:
    """Views that each image is limited to, all different: a pure function of its arguments.

    No seed of a run is in it, so that runs at any seed share one bank.

    Args:
        images: N.
        padding: As for `draw_plan`.
        flip: As for `draw_plan`.
        views: V, at most all that there are (`count_views`).

    Returns:
        int64 ``[N, V]``, the names of the views (see `EpochPlan.views`).

    Example:
        >>> draw_views(1, 1, False, 9).sort().values.tolist()
        [[0, 2, 4, 6, 8, 10, 12, 14, 16]]
    """
    total = count_views(padding, flip)
    random = _stream(0, 0, 6)
    views_of_each = np.empty((num_samples, views), np.int64)
    # Floyd's draw without replacement (Bentley and Floyd, CACM 1987), for all images at once.
    for place, top in enumerate(range(total - views, total)):
        drawn = random.integers(0, top, num_samples, endpoint=True)
        taken = (views_of_each[:, :place] == drawn[:, None]).any(1)
        views_of_each[:, place] = np.where(taken, top, drawn)
    return torch.from_numpy(views_of_each if flip else 2 * views_of_each)


def draw_plan(
    seed: int,
    epoch: int,
    num_samples: int,
    padding: int = 0,
    flip: bool = False,
    views_of_each: Tensor | None = None,
) -> EpochPlan:
    """The plan of an epoch: a pure function of its arguments, on any device and in any process.

    Each part has a random stream of its own, so that one setting (``flip``, say) changes nothing
    else.

    Args:
        seed: The run's seed, 0 or more.
        epoch: From 0.
        images: N, the images of the training split.
        padding: Crop ``padding`` pixels of zeros around the image; 0 for no crop.
        flip: Mirror half of the images.
        bank: The views that each image is limited to, of the same padding and flip (see
            `draw_views`), each as likely as the others; None for all views. The rest of the plan is
            the same either way.

    Example:
        >>> draw_plan(0, 0, 4).order.sort().values
        tensor([0, 1, 2, 3])
    """

    def stream(part: int) -> np.random.Generator:
        return _stream(seed, epoch, part)

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
    )


def _side(padding: int) -> int:
    """Offsets of a crop in one direction."""
    return 2 * padding + 1


def _stream(seed: int, epoch: int, part: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, part])))


def draw_below(seeds: Tensor, count: int, below: int) -> Tensor:
    """Numbers drawn from seeds alone: the same on any device, in any process, at any time.

    Args:
        seeds: int64 ``[B]``, as `EpochPlan.seeds`.
        count: Numbers for each seed.
        below: From 0 to ``below - 1``, at most 2^32; even but for less than ``below / 2^63``.

    Returns:
        int64 ``[B, count]``.

    Example:
        >>> draw_below(torch.tensor([1, 1]), 3, 10).tolist()
        [[2, 9, 5], [2, 9, 5]]
    """
    # SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), in the wrapping arithmetic of int64.
    steps = torch.arange(1, count + 1, device=seeds.device)
    mixed = seeds[:, None] + steps * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return _shifted(mixed ^ _shifted(mixed, 31), 1) % below


def _shifted(values: Tensor, places: int) -> Tensor:
    """A shift to the right that brings in zeros, as that of unsigned numbers does."""
    return (values >> places) & ((1 << (64 - places)) - 1)
