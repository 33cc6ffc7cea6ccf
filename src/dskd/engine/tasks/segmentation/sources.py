"""From the settings of the data to images with masks, divided by patient."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from dskd.engine.tasks.segmentation.dataset import SegmentationData, divide
from dskd.engine.tasks.segmentation.folders import ReadOptions, read_folders
from dskd.engine.tasks.segmentation.settings import SegmentationDataSettings
from dskd.engine.tasks.segmentation.shapes import CLASSES, SIZE, generate
from dskd.engine.tasks.segmentation.unet import SMALLEST
from dskd.errors import InputError


def load_images(settings: SegmentationDataSettings) -> SegmentationData:
    """The images of a recipe.

    Args:
        settings: Of `TaskRecipe.split_data`, which have the seed of the split.

    Raises:
        InputError: A folder or file cannot be used, or there are too few patients.

    Example:
        >>> data = load_images(SegmentationDataSettings(name="shapes", patients=3))
        >>> len(data.full), data.shape, data.classes
        (18, (1, 64, 64), ('background', 'disc', 'ring'))
    """
    if settings.name == "shapes":
        name, classes, splits = "shapes", CLASSES, generate(settings.size or SIZE)
        notes: list[str] = []
    else:
        assert settings.root is not None, "the settings are checked"
        form = settings.pixel_form
        options = ReadOptions(settings.size, form, settings.patient, settings.classes)
        name, (classes, splits, notes) = settings.root.name, read_folders(settings.root, options)
    height, width = splits["train"].images.shape[2:]
    if min(height, width) < SMALLEST:
        raise InputError(
            f"images of {width}x{height} pixels are too small for a U-Net, which needs "
            f"{SMALLEST}x{SMALLEST}; set data.size"
        )
    _check_used(settings, splits)
    data = divide(
        name,
        classes,
        splits,
        patients=settings.patients,
        val_fraction=settings.val_fraction,
        test_split=settings.test_split,
        split_seed=settings.seed_of_split,
        seed_width=settings.seed_width,
        seed_place=settings.seed_place,
    )
    return replace(data, notes=(*data.notes, *notes))


def _check_used(settings: SegmentationDataSettings, splits: Collection[str]) -> None:
    """Refuses shares of splits that the data has."""
    has_test, has_both = {"val", "test"} & {*splits}, {"val", "test"} <= {*splits}
    for key, there in (("test_split", has_test), ("val_fraction", has_both)):
        if there and not settings.is_default(key):
            split = "test" if key == "test_split" else "validation"
            raise InputError(f"data.{key} has no effect: the data has a {split} split; drop it")
