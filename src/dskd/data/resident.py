"""A split kept whole on the training device, and the batches that the epoch plan takes from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dskd.data.augment import crop_and_flip
from dskd.data.dataset import Dataset, Split
from dskd.data.plan import EpochPlan


@dataclass(frozen=True)
class Batch:
    """The pictures of one step.

    Attributes:
        images: uint8 ``[B, C, H, W]``, augmented; each model normalises them its own way.
        labels: int64 ``[B]``.
        indices: int64 ``[B]``, which pictures of the split.
        views: int64 ``[B]``, which view of each picture (see `EpochPlan.views`).
        seeds: int64 ``[B]``, for whatever else a method draws (see `dskd.data.plan.draw_below`).
        epoch: Of the plan, from 0.
        step: Of the epoch, from 0.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    views: Tensor
    seeds: Tensor
    epoch: int
    step: int


class Resident:
    """A split on a device.

    Args:
        split: The pictures and labels.
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
        dy, dx, flip, views, seeds = (
            part.to(self.device) for part in (plan.dy, plan.dx, plan.flip, plan.views, plan.seeds)
        )
        for step, rows in enumerate(plan.batches(batch_size, rank, world)):
            if step < start:
                continue
            rows = rows.to(self.device)
            images = crop_and_flip(self.images[rows], dy[rows], dx[rows], flip[rows], plan.padding)
            labels = self.labels[rows]
            yield Batch(images, labels, rows, views[rows], seeds[rows], plan.epoch, step)

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pictures and labels as they are, in the split's order."""
        yield from zip(
            torch.split(self.images, batch_size), torch.split(self.labels, batch_size), strict=True
        )


class ResidentData:
    """All splits of a data set on a device.

    Args:
        data: The data set.
        device: Where to keep its pictures.

    Attributes:
        train: To learn from.
        test: To judge on.
        validation: Held out of the training split; None where nothing is.
    """

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.data = data
        self.train, self.test = Resident(data.train, device), Resident(data.test, device)
        self.validation = Resident(data.validation, device) if data.validation else None
