"""A loader of labelled images, joined in every step by images without labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dskd.data.epoch_plan import EpochPlan
from dskd.data.joint_plan import draw_joint_plan, step_sizes
from dskd.data.loader import Batch, InOrder, Loader, ViewChoice


class JointLoader(Loader):
    """Two loaders as one: each step has images of both, evenly mixed.

    The images without labels follow the labelled ones in `labels` and in the indices of a batch.

    Args:
        labelled: The labelled images, over which an epoch goes.
        unlabelled: The images without labels, of the same shape.
        share: Which share of a step has no labels.
    """

    def __init__(self, labelled: Loader, unlabelled: Loader, share: float) -> None:
        self.labelled, self.unlabelled, self.share = labelled, unlabelled, share
        self.device, self.sample_shape = labelled.device, labelled.sample_shape
        self.labels = torch.cat([labelled.labels, unlabelled.labels])
        self._places: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def labelled_samples(self) -> int:
        """See `Loader.labelled_samples`."""
        return len(self.labelled)

    def step_sizes(self, batch_size: int, world_size: int = 1) -> tuple[int, int]:
        """See `Loader.step_sizes`."""
        return step_sizes(batch_size, self.share, world_size)

    def draw_plan(
        self, seed: int, epoch: int, how: ViewChoice, batch_size: int, world_size: int = 1
    ) -> EpochPlan:
        """See `Loader.draw_plan`."""
        counts = len(self.labelled), len(self.unlabelled)
        sizes = batch_size, self.share, world_size
        return draw_joint_plan(seed, epoch, counts, sizes, *how)

    def batches(
        self,
        plan: EpochPlan,
        batch_size: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Batch]:
        """See `Loader.batches`. The plan must be drawn for this batch size and world size."""
        assert plan.unlabelled is not None, "the plan has no images without labels"
        own, others = self.step_sizes(batch_size, world_size)
        where = start, rank, world_size
        labelled = self.labelled.batches(plan, own, *where)
        unlabelled = self.unlabelled.batches(plan.unlabelled, others, *where)
        for one, other in zip(labelled, unlabelled, strict=True):
            yield self._joined(one, other)

    def _joined(self, one: Batch, other: Batch) -> Batch:
        """The images of both batches, evenly mixed."""
        sizes = len(one.labels), len(other.labels)
        other = replace(
            other,
            indices=other.indices + len(self.labelled),
            cpu_keys=other.cpu_keys + torch.tensor([len(self.labelled), 0]),
        )
        parts: dict[str, Any] = {}
        for name, first in vars(one).items():
            if isinstance(first, Tensor):
                places = self._places_of(*sizes, first.device)
                parts[name] = _placed(first, getattr(other, name), places)
        kinds = one.global_size, other.global_size
        return replace(one, **parts, global_size=sum(kinds), kinds=kinds)

    def _places_of(self, own: int, others: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where the labelled images go in a batch, and where the others go."""
        key = own, others, device
        if key not in self._places:
            depths = torch.cat([(torch.arange(n) + 0.5) / max(n, 1) for n in (own, others)])
            places = depths.argsort(stable=True).argsort().to(device)
            self._places[key] = places[:own], places[own:]
        return self._places[key]

    def in_order(self, batch_size: int, rank: int = 0, world_size: int = 1) -> InOrder:
        """See `Loader.in_order`. The labelled and the unlabelled samples are shared separately."""
        for loader in (self.labelled, self.unlabelled):
            yield from loader.in_order(batch_size, rank, world_size)

    def probe(self, count: int) -> Tensor:
        """See `Loader.probe`."""
        first = self.labelled.probe(count)
        return torch.cat([first, self.unlabelled.probe(count - len(first))])

    def identity(self) -> dict[str, Any]:
        """See `Loader.identity`."""
        parts = {"labelled": self.labelled, "unlabelled": self.unlabelled}
        return {name: loader.identity() for name, loader in parts.items()}


def _placed(one: Tensor, other: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """The rows of both tensors at their places, in the memory format of the first."""
    images = one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last)
    joined = torch.empty(
        (len(one) + len(other), *one.shape[1:]),
        dtype=one.dtype,
        device=one.device,
        memory_format=torch.channels_last if images else torch.contiguous_format,
    )
    for rows, part in zip(places, (one, other), strict=True):
        joined[rows] = part
    return joined
