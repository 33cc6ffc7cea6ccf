"""Mixed batches of a run: mixup and CutMix between the images of a step, over all processes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dskd.config.train_settings import TrainSettings
from dskd.data.loader import NO_LABEL, Batch
from dskd.data.mixing import draw_mix
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.runtime import distributed


@dataclass(frozen=True)
class Mixing:
    """Mixes the images of a batch. Its labels become those of the class with the larger share.

    The neighbour of an image is the one before it in the step, and the last one for the first.
    Images without labels are mixed with each other, as a mixed image has the labels of both.

    Args:
        seed: Of the run.
        classes: Number of classes.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        probability: Share of the steps that are mixed.
    """

    seed: int
    classes: int
    mixup: float
    cutmix: float
    probability: float

    def __call__(self, batch: Batch) -> Batch:
        """The batch as the student and the teacher see it."""
        height, width = batch.images.shape[2:]
        mix = draw_mix(
            self.seed,
            batch.epoch,
            batch.step,
            (height, width),
            mixup=self.mixup,
            cutmix=self.cutmix,
            probability=self.probability,
        )
        if mix is None:
            return batch
        images, labels = (_neighbours(rows, batch) for rows in (batch.images, batch.labels))
        return replace(
            batch,
            images=mix.images(batch.images, images),
            labels=mix.main_labels(batch.labels, labels),
            soft_targets=mix.targets(batch.labels, labels, self.classes),
        )


def _neighbours(rows: Tensor, batch: Batch) -> Tensor:
    """For each image of a batch, the row of its neighbour."""
    if batch.kinds is None:
        return distributed.previous_rows(rows, batch.global_size)
    found, unlabelled = torch.empty_like(rows), batch.labels == NO_LABEL
    for where, size in zip((~unlabelled, unlabelled), batch.kinds, strict=True):
        found[where] = distributed.previous_rows(rows[where], size)
    return found


def build_mixing(settings: TrainSettings, seed: int, classes: int) -> Mixing | None:
    """The mixing of a recipe; None without one."""
    if not settings.mixing:
        return None
    return Mixing(seed, classes, settings.mixup, settings.cutmix, settings.mix_probability)


def check_mixes(settings: TrainSettings, method: Method, name: str) -> None:
    """Refuses mixed images for a method that needs one class for each image.

    Raises:
        InputError: The method is one.
    """
    if (key := settings.mixing) and method.hard_labels:
        raise InputError(
            f"train.{key} gives images of two classes, and the method {name!r} needs one class for "
            f"each: {method.hard_labels}; set train.{key}=0"
        )
