"""Batches of images with masks and with seeds, and splits in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from dskd.data.epoch_plan import EpochPlan, random_stream
from dskd.data.loader import NO_LABEL, Batch, HeldLoader, Loader
from dskd.engine.tasks.segmentation.augmentation import MaskAugmentation
from dskd.engine.tasks.segmentation.dataset import MaskedImages, SegmentationData
from dskd.errors import InputError

Supervision = Literal["masks", "seeds", "mixed", "all masks"]
"""What a run learns from. ``masks``: the images with masks alone. ``seeds``: all images, by their
seeds. ``mixed``: masks where they exist, and all seeds. ``all masks``: the masks of all images."""

NO_AUGMENTATION = MaskAugmentation()
WEAK_STREAM = 64
"""Number of the random stream that orders the images without masks; `EpochPlan` has those below."""


@dataclass(frozen=True)
class MaskedBatch(Batch):
    """The images of a step. Those with masks come first.

    Attributes:
        labels: int64 ``[B, H, W]``: the mask of each image; `NO_LABEL` for images without.
        seeds_of: int64 ``[B, H, W]``: the class on the pixels of a seed, 0 elsewhere.
        masked: How many images have a mask.
    """

    seeds_of: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    masked: int = 0

    def hits(self, logits: Tensor) -> Tensor:
        """The share of the pixels of images with masks whose class has the largest logit.

        Args:
            logits: ``[B, K, H, W]``; or those of the images with masks.
        """
        if not self.masked:
            return logits.new_zeros(())
        found = logits[: self.masked].argmax(1) == self.labels[: self.masked]
        return found.float().mean()


class MaskedLoader(HeldLoader):
    """A split of images with masks on a device, in order.

    Args:
        split: The images.
        device: The device that holds them.
        classes: Number of classes, with the background.

    Attributes:
        images: uint8 ``[N, C, H, W]``.
        labels: uint8 ``[N, H, W]``, the masks.
        classes: As given.
    """

    def __init__(self, split: MaskedImages, device: torch.device, classes: int) -> None:
        super().__init__(split.images, split.masks, device)
        self.classes = classes

    def batches(
        self,
        plan: EpochPlan,
        batch_size: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Batch]:
        """Refused: a split in order is evaluated."""
        raise TypeError("a split in order has no batches for training")


class MixedLoader(MaskedLoader):
    """The training images: each step has images with masks, and ``weak_ratio`` as many without.

    An epoch is one pass over the images with masks, whatever the supervision. So runs of every
    supervision take the same steps, and see the same images in them.

    Source: 8 images with masks and a multiple of them without are those of the public training code
    of arXiv 2012.08051. It draws the second kind anew in each step; here, within an epoch, each
    comes once before any comes again (*our choice*).

    Args:
        data: The data set.
        device: The device that holds the images.
        supervision: What the batches are learned from.
        weak_ratio: Images without masks for each image with one.
        augmentation: How the images of a step are changed.

    Raises:
        InputError: There are fewer than two images with masks, from which BatchNorm cannot learn;
            or all masks are to be read, and ``weak_ratio`` leaves some out.
    """

    def __init__(
        self,
        data: SegmentationData,
        device: torch.device,
        supervision: Supervision,
        weak_ratio: int,
        augmentation: MaskAugmentation = NO_AUGMENTATION,
    ) -> None:
        super().__init__(data.full, device, len(data.classes))
        if len(data.full) < 2:
            raise InputError("data.patients: two images with masks or more are needed to train")
        if supervision == "all masks" and data.weak is not None and not weak_ratio:
            raise InputError(
                "method.all_images reads the masks of all training images, and data.weak_ratio=0 "
                "leaves out those beyond data.patients; set it to 1 or more, or drop one of them"
            )
        self.supervision, self.augmentation = supervision, augmentation
        self._seeds = data.full.seeds.to(device)
        self._full, self._weak_size = len(data.full), 0
        self.weak_ratio = 0
        if data.weak is not None and weak_ratio and supervision != "masks":
            self.weak_ratio, self._weak_size = weak_ratio, len(data.weak)
            self.images = torch.cat([self.images, data.weak.images.to(device)])
            self.labels = torch.cat([self.labels, data.weak.masks.to(device)])
            self._seeds = torch.cat([self._seeds, data.weak.seeds.to(device)])

    def __len__(self) -> int:
        """How many images have a mask: those that an epoch goes over."""
        return self._full

    def largest_batch(self, batch_size: int) -> int:
        """Most images of a step."""
        return (batch_size + 1) * (1 + self.weak_ratio)

    def batches(
        self,
        plan: EpochPlan,
        batch_size: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[MaskedBatch]:
        """See `Loader.batches`."""
        assert world_size == 1, "images with masks are trained in one process"
        weak = self._weak_order(plan)
        shares = enumerate(plan.shares(batch_size))
        for step, (share, _) in islice(shares, start, None):
            full = plan.order[share]
            others = weak[share.start * self.weak_ratio : share.stop * self.weak_ratio]
            yield self._batch(plan, step, full, others)

    def _weak_order(self, plan: EpochPlan) -> Tensor:
        """The images without masks in the order of an epoch: shuffled, as often as needed."""
        needed = self._full * self.weak_ratio
        if not needed:
            return torch.empty(0, dtype=torch.int64)
        random = random_stream(int(plan.seeds[0]), plan.epoch, WEAK_STREAM)
        passes = -(-needed // self._weak_size)
        order = [torch.from_numpy(random.permutation(self._weak_size)) for _ in range(passes)]
        return torch.cat(order)[:needed] + self._full

    def _batch(self, plan: EpochPlan, step: int, full: Tensor, weak: Tensor) -> MaskedBatch:
        indices = torch.cat([full, weak])
        own = indices.to(self.device)
        numbers = torch.arange(len(indices), device=self.device)
        seeds = plan.seeds[full[:1]].to(self.device) + numbers
        known = (self.labels[own].long(), self._seeds[own].long())
        images, (labels, seeds_of) = self.augmentation.apply(self.images[own], known, seeds)
        masked = {"seeds": 0, "all masks": len(indices)}.get(self.supervision, len(full))
        labels[masked:] = NO_LABEL
        return MaskedBatch(
            images,
            labels=labels,
            indices=own,
            views=torch.zeros_like(numbers),
            seeds=seeds,
            epoch=plan.epoch,
            step=step,
            cpu_keys=torch.stack([indices, torch.zeros_like(indices)], 1),
            seeds_of=seeds_of,
            masked=masked,
        )


class SegmentationLoaders:
    """The loaders of a run.

    Args:
        data: The data set.
        device: The device on which batches arrive.
        supervision: What the run learns from.
        weak_ratio: See `MixedLoader`.
        augmentation: See `MixedLoader`.

    Attributes:
        data: The data set.
        train: Loader of the training images.
        test: Loader of the test split.
        validation: Loader of the validation split.
    """

    def __init__(
        self,
        data: SegmentationData,
        device: torch.device,
        supervision: Supervision,
        weak_ratio: int,
        augmentation: MaskAugmentation = NO_AUGMENTATION,
    ) -> None:
        self.data = data
        self.train = MixedLoader(data, device, supervision, weak_ratio, augmentation)
        classes = len(data.classes)
        self.test = MaskedLoader(data.test, device, classes)
        self.validation: Loader | None = MaskedLoader(data.validation, device, classes)
