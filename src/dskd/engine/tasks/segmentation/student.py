"""Load a trained student of segmentation, evaluate it, and predict masks with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dskd.engine.tasks.finished import Which, finished_run
from dskd.engine.tasks.same_data import warn_of_other_data
from dskd.engine.tasks.segmentation.dataset import SegmentationData
from dskd.engine.tasks.segmentation.loader import MaskedLoader
from dskd.engine.tasks.segmentation.masks import fit, placed
from dskd.engine.tasks.segmentation.metadata import read_student_metadata
from dskd.engine.tasks.segmentation.metrics import ClassScores, class_scores
from dskd.engine.tasks.segmentation.recipe import RECIPES
from dskd.engine.tasks.segmentation.settings import SegmentationRecipe
from dskd.engine.tasks.segmentation.sources import load_images
from dskd.engine.tasks.segmentation.task import SEGMENTATION
from dskd.engine.tasks.segmentation.unet import SMALLEST, SegmentationModel, UNet
from dskd.errors import InputError
from dskd.storage.weights import load_weights, read_weights


@dataclass(frozen=True)
class SegmentationStudent:
    """A trained student: the encoder and one decoder.

    Attributes:
        model: The network in eval mode, on the CPU.
        classes: Name of each class, the background first.
        recipe: Of the run that trained it.
    """

    model: SegmentationModel
    classes: tuple[str, ...]
    recipe: SegmentationRecipe

    @torch.no_grad()
    def predict(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The class of each pixel of an image, ``[H, W]``.

        The image is resized as the training images were, and the mask is resized back.

        Args:
            image: uint8 ``[C, H, W]``.

        Raises:
            InputError: It is too small.
        """
        size, (height, width) = self.recipe.data.size, image.shape[1:]
        shown = image if size is None else _square(image, size)
        if min(shown.shape[1:]) < SMALLEST:
            raise InputError(
                f"an image of {width}x{height} pixels is too small; {SMALLEST}x{SMALLEST} are "
                "needed"
            )
        logits = self.model(torch.from_numpy(shown.copy())[None]).logits
        mask: NDArray[np.uint8] = logits.argmax(1)[0].to(torch.uint8).numpy()
        if size is None:
            return mask
        left, top, inner_width, inner_height = placed(width, height, size)
        part = Image.fromarray(mask[top : top + inner_height, left : left + inner_width])
        return np.asarray(part.resize((width, height), Image.Resampling.NEAREST))


def load_student(run: Path, which: Which = "best") -> SegmentationStudent:
    """Loads the student of a finished run.

    Args:
        run: The folder of the run.
        which: The weights of the last epoch, or of the best one by validation Dice.

    Raises:
        InputError: There is no finished run of segmentation.
    """
    recipe, path = finished_run(run, RECIPES, which)
    metadata = read_student_metadata(path)
    net = UNet(len(metadata.classes), metadata.channels, metadata.model.width, 0.0)
    load_weights(net, read_weights(path), f"the student in {path}")
    model = metadata.model_of(net)
    return SegmentationStudent(model.eval(), metadata.classes, recipe)


def evaluate(run: Path, which: Which = "best") -> list[ClassScores]:
    """Dice and HD95 of a finished run's student on the test split of its data.

    A warning tells of data that has changed since the run was trained.

    Args:
        run: The folder of the run.
        which: As for `load_student`.

    Raises:
        InputError: As `load_student`, or the data cannot be read or has other classes now.
    """
    student = load_student(run, which)
    data = load_images(student.recipe.split_data)
    warn_of_other_data(run, data.fingerprint())
    return scores_on(student, data, run)


def scores_on(student: SegmentationStudent, data: SegmentationData, run: Path) -> list[ClassScores]:
    """Dice and HD95 of a student on the test split of some data.

    Args:
        student: From `load_student`.
        data: Images with masks.
        run: The folder of the student's run, for messages.

    Raises:
        InputError: The data has other classes.
    """
    if data.classes != student.classes:
        raise InputError(
            f"the masks of {run} have other classes now, {', '.join(data.classes)}; give the same"
        )
    loader = MaskedLoader(data.test, torch.device("cpu"), len(data.classes))
    model = student.model
    found = SEGMENTATION.evaluate(model, lambda images: {"student": model(images).logits}, loader)[
        "student"
    ]
    return class_scores(found.predictions, loader.labels, data.classes)


def _square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The image as the training images of this size are."""
    drawn = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    small = np.asarray(fit(drawn, size, Image.Resampling.BILINEAR))
    return small[None] if small.ndim == 2 else small.transpose(2, 0, 1)
