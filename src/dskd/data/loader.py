"""Loaders: the samples of a split as batches on the training device.

`Loader` is all that training, evaluation and the cache of teacher outputs know of the data.
`MemoryLoader` is the loader of data sets that fit into memory.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from dskd.data.augmentation import Augmentation
from dskd.data.epoch_plan import EpochPlan, draw_plan, steps
from dskd.data.transforms import crop_and_flip, distort, random_resized_crops

if TYPE_CHECKING:
    from dskd.data.dataset import Dataset, Samples

NO_LABEL = -1
"""In place of the label of an image that has none."""
ViewChoice = tuple[int, bool, Tensor | None, Augmentation]
"""How views are drawn: padding, flip, views of each image, and augmentation, as in `draw_plan`."""
InOrder = Iterator[tuple[Tensor, Tensor]]
"""Samples and labels, as `Loader.in_order` gives them."""
AUGMENT_BYTES = 16 << 20
"""Bytes of images that a GPU augments in one call."""


@dataclass(frozen=True)
class Batch:
    """This process's samples of one training step.

    Attributes:
        images: uint8 ``[B, C, H, W]``, augmented; each model applies its own normalisation.
        labels: int64 ``[B]``; `NO_LABEL` for an image without a label.
        indices: int64 ``[B]``, index of each sample in the split.
        views: int64 ``[B]``, number of each sample's view (see `EpochPlan.views`).
        seeds: int64 ``[B]``, random numbers that methods draw from (see
            `dskd.data.epoch_plan.draw_below`).
        epoch: Epoch of the plan, from 0.
        step: Step of the epoch, from 0.
        cpu_keys: int64 ``[B, 2]`` on the CPU: ``indices`` and ``views`` once more, to look samples
            up without waiting for a GPU.
        global_size: Number of samples of the step over all processes; 0 stands for B.
        part: Which part of the step this is, from 0, if the step accumulates gradients.
        soft_targets: float32 ``[B, K]``, what cross-entropies with the labels learn in place of
            ``labels``; None if it is these.
        kinds: How many samples of the whole step, over all processes, have a label, and how many
            have none; None if all have one.
        samples: The word for the samples in messages.
    """

    samples: ClassVar[str] = "images"

    images: Tensor
    labels: Tensor
    indices: Tensor
    views: Tensor
    seeds: Tensor
    epoch: int
    step: int
    cpu_keys: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.int64))
    global_size: int = 0
    part: int = 0
    soft_targets: Tensor | None = None
    kinds: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.global_size:
            object.__setattr__(self, "global_size", len(self.labels))

    @property
    def targets(self) -> Tensor:
        """What cross-entropies learn: int64 ``[B]``, or float32 ``[B, K]`` if they are soft."""
        return self.labels if self.soft_targets is None else self.soft_targets

    def hits(self, logits: Tensor) -> Tensor:
        """The share of the samples whose class is the one with the largest logit.

        Args:
            logits: ``[B, K]``.
        """
        return (logits.argmax(1) == self.labels).float().mean()

    @property
    def label_scale(self) -> float:
        """The factor that makes a mean over all images of a step one over those with a label.

        An image without a label counts as 0 in the first mean. Parts of a step and processes all
        have the factor of the whole step, so their weighted mean is exact, however many labels
        each of them has.
        """
        return 1.0 if self.kinds is None else sum(self.kinds) / self.kinds[0]


class Loader(ABC):
    """The samples and labels of one split.

    Attributes:
        device: The device on which batches arrive.
        labels: int64 ``[N]``, on `device`, in the order of the split.
        sample_shape: Shape of one sample.
    """

    device: torch.device
    labels: Tensor
    sample_shape: tuple[int, ...]

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self.labels)

    @property
    def labelled_samples(self) -> int:
        """How many samples have a label: those that an epoch goes over."""
        return len(self)

    def step_sizes(self, batch_size: int, world_size: int = 1) -> tuple[int, int]:
        """How many samples of a step have a label, and how many have none."""
        return batch_size, 0

    def steps(self, batch_size: int, world_size: int = 1) -> int:
        """How many steps an epoch has; see `dskd.data.epoch_plan.steps`."""
        labelled, _ = self.step_sizes(batch_size, world_size)
        return steps(self.labelled_samples, labelled, world_size)

    def draw_plan(
        self, seed: int, epoch: int, how: ViewChoice, batch_size: int, world_size: int = 1
    ) -> EpochPlan:
        """The plan of an epoch, for `batches`.

        Args:
            seed: Of the run.
            epoch: From 0.
            how: How views are drawn.
            batch_size: As for `batches`.
            world_size: As for `batches`.
        """
        return draw_plan(seed, epoch, len(self), *how)

    @abstractmethod
    def batches(
        self,
        plan: EpochPlan,
        batch_size: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Batch]:
        """The augmented batches of an epoch, from step ``start`` on.

        The same arguments give the same bytes, in every process and after every restart.

        Args:
            plan: The epoch's random choices, on the CPU.
            batch_size: Samples of a step, over all processes (see `dskd.data.epoch_plan.steps`).
            start: First step to return.
            rank: The process whose share of each step is returned.
            world_size: Number of processes that share a batch.
        """

    @abstractmethod
    def in_order(self, batch_size: int, rank: int = 0, world_size: int = 1) -> InOrder:
        """Samples ``[B, ...]`` and labels ``[B]`` without augmentation, in the split's order.

        A process gets one batch of ``world_size``, from that of its rank on.
        """

    @abstractmethod
    def probe(self, count: int) -> Tensor:
        """The first ``count`` samples without augmentation (all, if there are fewer)."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain values that differ if the samples differ; labels do not count."""


class BatchAssembly:
    """Puts images and all that belongs to them together into a batch.

    Args:
        plan: The epoch's random choices, on the CPU.
        labels: int64 ``[N]``, of the split, on the device of the batches.

    Attributes:
        plan: The plan on that device.
    """

    def __init__(self, plan: EpochPlan, labels: Tensor) -> None:
        self._keys = torch.stack([plan.order, plan.views[plan.order]], dim=1)
        self.plan, self._labels = plan.to(labels.device), labels
        self._views = self.plan.views

    def __call__(self, images: Tensor, step: int, share: slice, global_size: int) -> Batch:
        """The batch of a step; ``images`` are those of ``share`` in the plan's order."""
        own = self.plan.order[share]
        return Batch(
            images,
            labels=self._labels[own],
            indices=own,
            views=self._views[own],
            seeds=self.plan.seeds[own],
            epoch=self.plan.epoch,
            step=step,
            cpu_keys=self._keys[share],
            global_size=global_size,
        )


class HeldLoader(Loader):
    """A split that is held in the memory of the training device, in order.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: One for each image, of any shape.
        device: The device that holds them.

    Attributes:
        images: As given, on the device.
        labels: As given, on the device.
    """

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device) -> None:
        self.images, self.labels = images.to(device), labels.to(device)
        self.device = device
        self.sample_shape = tuple(self.images.shape[1:])

    def in_order(self, batch_size: int, rank: int = 0, world_size: int = 1) -> InOrder:
        """See `Loader.in_order`."""
        images, labels = (torch.split(one, batch_size) for one in (self.images, self.labels))
        yield from zip(images[rank::world_size], labels[rank::world_size], strict=True)

    def probe(self, count: int) -> Tensor:
        """See `Loader.probe`."""
        return self.images[:count]

    def identity(self) -> dict[str, Any]:
        """See `Loader.identity`."""
        content = self.images.cpu().contiguous().numpy()
        digest = hashlib.sha256(content.data).hexdigest()
        return {"shape": list(self.images.shape), "sha256": digest}


class MemoryLoader(HeldLoader):
    """A split of images with classes, augmented on the training device.

    Args:
        split: Images and labels.
        device: The device that holds them.
    """

    def __init__(self, split: Samples, device: torch.device) -> None:
        super().__init__(split.images, split.labels, device)

    def batches(
        self,
        plan: EpochPlan,
        batch_size: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Batch]:
        """See `Loader.batches`."""
        assemble = BatchAssembly(plan, self.labels)
        plan = assemble.plan
        shares = islice(enumerate(plan.shares(batch_size, rank, world_size)), start, None)
        while group := list(islice(shares, self._steps_per_call(batch_size))):
            rows = [plan.order[share] for _, (share, _) in group]
            joined = torch.cat(rows)
            offsets = plan.dy[joined], plan.dx[joined], plan.flip[joined]
            seeds, more = plan.seeds[joined], plan.augmentation
            augmented = random_resized_crops(self.images[joined], seeds, more)
            augmented = crop_and_flip(augmented, *offsets, plan.padding)
            augmented = distort(augmented, seeds, more)
            parts = torch.split(augmented, [len(own) for own in rows])
            for images, (step, (share, global_size)) in zip(parts, group, strict=True):
                yield assemble(images, step, share, global_size)

    def _steps_per_call(self, batch_size: int) -> int:
        """How many steps are augmented in one call.

        One on a CPU, where a batch then stays in the processor's cache. Several on a GPU, which a
        single batch would not fill; the call takes the CPU no longer.
        """
        if self.device.type == "cpu":
            return 1
        return max(1, AUGMENT_BYTES // (batch_size * self.images[0].nbytes))


L = TypeVar("L", bound=Loader)


class SplitLoaders(Generic[L]):
    """The loaders of all splits of a data set of any task.

    Args:
        data: The data set, with its splits ``train``, ``test`` and perhaps ``validation``.
        load: Makes the loader of a split.

    Attributes:
        data: The data set.
        train: Loader of the training split.
        test: Loader of the test split.
        validation: Loader of the validation split; None without one.
    """

    def __init__(self, data: Any, load: Callable[[Any], L]) -> None:
        self.data = data
        self.train, self.test = load(data.train), load(data.test)
        self.validation = load(data.validation) if data.validation is not None else None


class DataLoaders(SplitLoaders[Loader]):
    """The loaders of all splits of a data set of images.

    Args:
        data: The data set.
        device: The device on which batches arrive.

    Attributes:
        unlabelled: Loader of the images without labels; None without any.
    """

    data: Dataset

    def __init__(self, data: Dataset, device: torch.device) -> None:
        super().__init__(data, lambda split: split.loader(device))
        self.unlabelled = data.unlabelled.loader(device) if data.unlabelled is not None else None

    def relabel(self, test: Tensor, validation: Tensor | None) -> None:
        """Gives the images that are evaluated other labels, such as the teacher's predictions.

        Args:
            test: int64 ``[N]``.
            validation: The same for the validation split; None without one.
        """
        device, data = self.train.device, self.data
        changed = data.test.relabelled(test)
        self.data, self.test = replace(data, test=changed), changed.loader(device)
        if data.validation is not None and validation is not None:
            changed = data.validation.relabelled(validation)
            self.data = replace(self.data, validation=changed)
            self.validation = changed.loader(device)
