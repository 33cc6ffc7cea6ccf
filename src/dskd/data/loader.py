"""A split kept whole on the training device, and the batches that the epoch plan takes from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from dskd.data.augmentation import crop_and_flip
from dskd.data.dataset import Dataset, Split
from dskd.data.epoch_plan import EpochPlan

TOGETHER = 16 << 20
"""Bytes of images that a GPU augments at once."""


@dataclass(frozen=True)
class Batch:
    """The images of one step.

    Attributes:
        images: uint8 ``[B, C, H, W]``, augmented; each model normalises them its own way.
        labels: int64 ``[B]``.
        indices: int64 ``[B]``, which images of the split.
        views: int64 ``[B]``, which view of each image (see `EpochPlan.views`).
        seeds: int64 ``[B]``, for whatever else a method draws (see `dskd.data.epoch_plan.draw_below`).
        epoch: Of the plan, from 0.
        step: Of the epoch, from 0.
        named: int64 ``[B, 2]``, ``indices`` and ``views`` once more, in main memory: who looks
            images up there need not wait for a GPU to tell.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    views: Tensor
    seeds: Tensor
    epoch: int
    step: int
    named: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.int64))


class MemoryLoader:
    """A split on a device.

    Args:
        split: The images and labels.
        device: Where to keep them.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.images = split.images.to(device)
        self.labels = split.labels.to(device)
        self.device = device

    def __len__(self) -> int:
        return len(self.labels)

    def planned(
        self, plan: EpochPlan, batch_size: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """The augmented batches of an epoch, from step ``start`` on (see `EpochPlan.batches`)."""
        named = torch.stack([plan.order, plan.views[plan.order]], dim=1)
        plan = plan.to(self.device)
        views = plan.views
        parts = islice(enumerate(plan.slices(batch_size, rank, world)), start, None)
        while some := list(islice(parts, self._together(batch_size))):
            rows = [plan.order[part] for _, part in some]
            together = torch.cat(rows)
            offsets = plan.dy[together], plan.dx[together], plan.flip[together]
            samples = crop_and_flip(self.images[together], *offsets, plan.padding)
            split = torch.split(samples, [len(own) for own in rows])
            for images, own, (step, part) in zip(split, rows, some, strict=True):
                drawn = self.labels[own], own, views[own], plan.seeds[own]
                yield Batch(images, *drawn, plan.epoch, step, named[part])

    def _together(self, batch_size: int) -> int:
        """How many steps' images are augmented at once.

        One on a CPU, whose cache holds it. On a GPU as many as fill it with work, which costs the
        host no more than one.
        """
        if self.device.type == "cpu":
            return 1
        return max(1, TOGETHER // (batch_size * self.images[0].nbytes))

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels as they are, in the split's order."""
        yield from zip(
            torch.split(self.images, batch_size), torch.split(self.labels, batch_size), strict=True
        )


class DataLoaders:
    """All splits of a data set on a device.

    Args:
        data: The data set.
        device: Where to keep its images.

    Attributes:
        train: To learn from.
        test: To evaluate on.
        validation: Held out of the training split; None where nothing is.
    """

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.data = data
        self.train, self.test = MemoryLoader(data.train, device), MemoryLoader(data.test, device)
        self.validation = MemoryLoader(data.validation, device) if data.validation else None
