"""The settings of a run on images with masks: names, types, defaults and help texts."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from dskd.config.schema import MethodSettings, ValueRange
from dskd.data.pixels import MAX_PIXELS, PixelForm
from dskd.engine.tasks.segmentation.augmentation import SETS, AugmentSet, MaskAugmentation
from dskd.engine.tasks.settings import SplitSettings, TaskRecipe, TaskTrainSettings
from dskd.settings import Count, Fraction, Natural, PathSetting, Rate, Seed, Settings
from dskd.storage.metric_names import Metric

DataName = Literal["folder", "shapes"]
"""Where images with masks come from."""
Normalize = Literal["dataset", "image"]
"""Which mean and standard deviation normalise an image."""
MaskValue = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""A value of a mask."""


def _regular_expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"a regular expression is needed: {error}") from None
    return value


def _different(classes: dict[str, int] | None) -> dict[str, int] | None:
    if classes is not None and (not classes or len({*classes.values()}) < len(classes)):
        raise ValueError("give one class or more, each with a value of its own")
    return classes


_AUGMENTATIONS = ("flip", "rotate", "zoom", "shift", "gamma")


class SegmentationDataSettings(SplitSettings):
    """The images and masks, and how they are split."""

    name: DataName
    """``folder``: your own images. ``shapes``: small generated ones."""
    root: PathSetting | None = None
    """For folder: it has ``train``, and perhaps ``val`` (or ``valid``, ``validation``) and
    ``test``, each with a folder ``img`` and a folder ``mask``; or it has these two itself. An image
    and its mask have the same name."""
    classes: Annotated[dict[str, MaskValue] | None, AfterValidator(_different)] = None
    """For folder: the value that each class has in the masks, as in ``{left ventricle: 255}``. All
    other values are background. None makes a class of every value of the training masks but the
    lowest."""
    size: Annotated[Count, Field(ge=16, le=4096)] | None = None
    """Height and width of the images in pixels. Images of other sizes are resized to fit into the
    square, on black. None keeps the size, which must then be the same for all, or is 64 for
    shapes."""
    channels: Literal[1, 3] = 1
    """For folder: 3 for RGB or 1 for gray."""
    value_range: ValueRange | None = None
    """For folder: the lowest and the highest value of a pixel, which become 0 and 255. For 12 bits
    they are [0, 4095]. None uses the range of the file's type."""
    max_pixels: Count | None = None
    """For folder: most pixels of an image file. None uses 89,478,485, Pillow's limit."""
    normalize: Normalize = "dataset"
    """Which mean and standard deviation normalise an image: those of the training images
    (``dataset``), or its own (``image``), for scans that differ in brightness and contrast."""
    augment: AugmentSet = "none"
    """Named set of the augmentations below; each can also be set on its own. ``none`` has none.
    ``standard``: flip, rotate 30, zoom 1.25, shift 0.1 and gamma 1.5. Each training image is
    changed anew in every epoch, with its mask and its seeds. On the command line, it replaces the
    augmentations of the recipe file."""
    flip: bool | None = None
    """Mirror half of the training images left to right. None takes that of the set."""
    rotate: Annotated[float, Field(ge=0, le=180)] | None = None
    """Largest random rotation to either side, in degrees."""
    zoom: Annotated[float, Field(ge=1, le=4)] | None = None
    """Largest random factor by which an image grows or shrinks. 1 for none."""
    shift: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Largest random shift in each direction, as a share of the side."""
    gamma: Annotated[float, Field(ge=1, le=10)] | None = None
    """Largest random exponent of the brightness x, for x from 0 to 1, and the inverse of the
    smallest one. 1 for none."""
    patient: Annotated[str, AfterValidator(_regular_expression)] = r"patient\d+"
    """For folder: a regular expression that finds the patient at the start of a file name; its
    first group, if it has one. All images of a patient are in one split. An image without a match
    is a patient of its own."""
    patients: Count = 3
    """How many training patients have masks. All others have seeds only."""
    weak_ratio: Natural = 5
    """Images with seeds only, in each step, for each image with a mask."""
    seed_width: Annotated[Count, Field(le=1024)] = 4
    """Width of a seed in pixels: a disc around a foreground pixel, cut by the mask."""
    seed_place: Literal["random", "centre"] = "random"
    """Where a seed lies: around a ``random`` pixel of the class, or its ``centre``."""
    split_seed: Seed | None = 0
    """Seed of the patients that have masks, of those that are held out, and of the seeds. None
    takes the seed of the run, so that a comparison has a split for each seed."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training patients that is held out for validation, if no split is left for it.
    (Without ``test``, ``val`` is the test split.)"""
    test_split: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training patients that is held out for the test, without ``val`` and
    ``test``."""

    @property
    def augmentation(self) -> MaskAugmentation:
        """How training images are changed."""
        own = {key: value for key in _AUGMENTATIONS if (value := getattr(self, key)) is not None}
        return MaskAugmentation(**{**SETS[self.augment], **own})

    @property
    def pixel_form(self) -> PixelForm:
        """What the pixels of image files become."""
        most = self.max_pixels or MAX_PIXELS
        return PixelForm(self.channels, self.value_range, most)

    @property
    def title(self) -> str:
        """What a reader calls the images."""
        return (self.root.resolve().name if self.root else "") or self.name

    @property
    def metric(self) -> Metric:
        """What is measured on the test split."""
        return "dice"

    @model_validator(mode="after")
    def _applies(self) -> SegmentationDataSettings:
        if self.name == "folder" and self.root is None:
            raise ValueError("root is needed: the folder with img and mask")
        if self.name == "shapes":
            for key in ("root", "classes", "channels", "value_range", "max_pixels", "patient"):
                if not self.is_default(key):
                    raise ValueError(f"{key} is a setting of folder, not of shapes; drop it")
        return self


class SegmentationModelSettings(Settings):
    """A segmentation network."""

    name: Literal["unet"] = "unet"
    """``unet``."""
    width: Annotated[Count, Field(le=1024)] = 64
    """Channels of the first stage. Each of the four further ones has twice as many as the one
    before."""
    dropout: Fraction = 0.5
    """Share of the fourth stage's values that are set to 0 in training."""


class SegmentationTeacherSettings(SegmentationModelSettings):
    """The model to learn from."""

    checkpoint: PathSetting | None = None
    """File with the teacher's weights: the student.safetensors of a run. None trains the teacher
    first, into ``teacher`` in the run's folder."""
    epochs: Count | None = None
    """Epochs of the teacher's own training. None uses train.epochs."""

    @property
    def is_given(self) -> bool:
        """Whether no run trains it."""
        return self.checkpoint is not None


class SegmentationTrainSettings(TaskTrainSettings):
    """The training: schedule, optimizer and hardware."""

    epochs: Count = 600
    """Passes over the images with masks, whatever the supervision."""
    batch_size: Annotated[Count, Field(ge=2)] = 8
    """Images with masks in a step. Those with seeds only come on top (data.weak_ratio)."""
    lr: Rate = 1e-4
    """Base learning rate, at most 1e6."""

    UNUSED: ClassVar[tuple[str, ...]] = tuple(
        key for key in TaskTrainSettings.UNUSED if key != "precision"
    )


class SegmentationRecipe(TaskRecipe):
    """All settings of a run on images with masks."""

    TEACHER: ClassVar[str] = "teacher.width=64"
    AUGMENTATIONS: ClassVar[tuple[str, ...]] = ("augment", *_AUGMENTATIONS)

    task: Literal["segment"] = "segment"
    """Tells the recipe from one of image classification."""
    data: SegmentationDataSettings
    student: SegmentationModelSettings = SegmentationModelSettings()
    teacher: SegmentationTeacherSettings | None = None
    method: MethodSettings = MethodSettings(name="segment/mixed")
    train: SegmentationTrainSettings = SegmentationTrainSettings()
    seed: Seed = 0
    """Seed of the initial weights and of the order of the images. The patients and the seeds of
    images have one of their own, data.split_seed."""
    out: PathSetting | None = None
    """The run's folder. None uses ``runs/segment/<recipe>/<method>-seed<seed>``."""
