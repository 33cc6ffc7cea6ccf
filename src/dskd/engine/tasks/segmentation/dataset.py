"""The images and masks of a data set, divided by patient."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dskd.data.dataset import channel_statistics
from dskd.engine.tasks.segmentation.patients import check_disjoint, draw_patients
from dskd.engine.tasks.segmentation.seeds import Place, draw_seeds
from dskd.errors import InputError
from dskd.storage.metric_names import Metric


@dataclass(frozen=True)
class MaskedImages:
    """Images with masks and seeds.

    Attributes:
        images: uint8, ``[N, C, H, W]``.
        masks: uint8, ``[N, H, W]``: the class of each pixel, 0 for the background.
        names: Name of each image, without folder and suffix.
        patients: The patient of each image.
        seeds: uint8, ``[N, H, W]``: the class on the pixels of a seed, 0 elsewhere.
    """

    images: Tensor
    masks: Tensor
    names: tuple[str, ...]
    patients: tuple[str, ...]
    seeds: Tensor

    @classmethod
    def without_seeds(
        cls, images: Tensor, masks: Tensor, names: tuple[str, ...], patients: tuple[str, ...]
    ) -> MaskedImages:
        """Images whose seeds are not drawn yet."""
        return cls(images, masks, names, patients, torch.zeros_like(masks))

    def __len__(self) -> int:
        return len(self.names)

    def take(self, patients: set[str]) -> MaskedImages:
        """The images of some patients, in their order."""
        chosen = [i for i, patient in enumerate(self.patients) if patient in patients]
        rows = torch.tensor(chosen, dtype=torch.int64)
        return MaskedImages(
            self.images[rows],
            self.masks[rows],
            tuple(self.names[i] for i in chosen),
            tuple(self.patients[i] for i in chosen),
            self.seeds[rows],
        )

    def examples(self, count: int) -> list[int]:
        """Images to show, spread over those whose masks are not empty; over all if all are."""
        full = [index for index, mask in enumerate(self.masks) if mask.any()]
        full = full or [*range(len(self))]
        shown = min(count, len(full))
        return [full[len(full) * number // shown] for number in range(shown)]

    def with_seeds(self, seed: int, width: int, place: Place) -> MaskedImages:
        """The same images with seeds of `dskd.engine.tasks.segmentation.seeds.draw_seeds`."""
        drawn = draw_seeds(self.masks.numpy(), self.names, seed=seed, width=width, place=place)
        return replace(self, seeds=torch.from_numpy(drawn))


@dataclass(frozen=True)
class SegmentationData:
    """A data set of images with masks.

    Attributes:
        name: Name in the recipe.
        classes: Names of the classes, the background first.
        full: Training images with masks.
        weak: Training images with seeds alone; None if all have masks. Their masks are read by a
            run that trains on all masks, and by no other.
        validation: Chooses the best epoch.
        test: Measures the student.
        test_is_held_out: Whether the test images were taken off the training images.
        notes: Lines about the data for the user.
    """

    name: str
    classes: tuple[str, ...]
    full: MaskedImages
    weak: MaskedImages | None
    validation: MaskedImages
    test: MaskedImages
    test_is_held_out: bool
    notes: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric:
        """What is measured on the test split."""
        return "dice"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.full.images.shape[1:]
        return channels, height, width

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of all training images, from 0 to 1."""
        parts = [part.images for part in (self.full, self.weak) if part is not None]
        return channel_statistics(*parts)

    def parts(self) -> dict[str, MaskedImages]:
        """All images, by the name of their part."""
        found = {"full": self.full, "validation": self.validation, "test": self.test}
        return found if self.weak is None else found | {"weak": self.weak}

    def fingerprint(self) -> str:
        """A hash of all images, masks and seeds: equal for equal data only."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name, part in sorted(self.parts().items()):
            digest.update(f"{name} {list(part.images.shape)}".encode())
            for tensor in (part.images, part.masks, part.seeds):
                digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()


def divide(
    name: str,
    classes: tuple[str, ...],
    splits: Mapping[str, MaskedImages],
    *,
    patients: int,
    val_fraction: float,
    test_split: float,
    split_seed: int,
    seed_width: int = 4,
    seed_place: Place = "random",
) -> SegmentationData:
    """Divides images into those with masks, those with seeds, validation and test, by patient.

    Without ``test``, the images of ``val`` are the test split. Without both, patients are taken
    off ``train``. A validation split that is not there is taken off ``train``, too.

    Args:
        name: Name in the recipe.
        classes: Names of the classes, the background first.
        splits: The images of ``train``, and perhaps of ``val`` and ``test``.
        patients: How many training patients have masks. The others have seeds.
        val_fraction: Share of the training patients for validation, if there are none.
        test_split: Share of the training patients for the test, if there are none.
        split_seed: Of the patients that are drawn, and of the seeds.
        seed_width: Width of a seed in pixels.
        seed_place: Where a seed lies.

    Raises:
        InputError: A patient is in two splits, or there are too few patients.
    """
    check_disjoint({split: images.patients for split, images in splits.items()})
    train, val, test = splits["train"], splits.get("val"), splits.get("test")
    if test is None:
        val, test = None, val
    wanted = {
        "test": test_split if test is None else 0.0,
        "validation": val_fraction if val is None else 0.0,
    }
    held_out, left = _held_out(name, train, wanted)
    if patients > left:
        raise InputError(
            f"data.patients={patients}: {name} has {left} training patients; give at most that "
            "many masks"
        )
    full_weak = {"full": patients, "weak": left - patients}
    where = draw_patients(train.patients, {**held_out, **full_weak}, split_seed)

    def part(name: str) -> MaskedImages:
        chosen = train.take({patient for patient, its in where.items() if its == name})
        return chosen.with_seeds(split_seed, seed_width, seed_place)

    validation = part("validation") if val is None else val
    held, test = test is None, part("test") if test is None else test
    weak = part("weak") if full_weak["weak"] else None
    notes = [
        f"{patients} patients with masks, {full_weak['weak']} with seeds, "
        f"{len({*validation.patients})} for validation, {len({*test.patients})} for the test"
    ]
    return SegmentationData(name, classes, part("full"), weak, validation, test, held, tuple(notes))


def _held_out(
    name: str, train: MaskedImages, wanted: Mapping[str, float]
) -> tuple[dict[str, int], int]:
    """How many training patients are held out for each part, and how many are left.

    Raises:
        InputError: None is left.
    """
    count = len({*train.patients})
    taken = {part: max(1, round(share * count)) if share else 0 for part, share in wanted.items()}
    left = count - sum(taken.values())
    if left < 1:
        raise InputError(
            f"{name}: {count} training patients are too few, as {taken['validation']} are taken "
            f"for validation and {taken['test']} for the test; add some, or set data.patient"
        )
    return taken, left
