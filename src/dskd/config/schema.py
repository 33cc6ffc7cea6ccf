"""The settings of a run: names, types, defaults and help texts.

A settings class lists one section of a recipe. The docstring under each field is its help text, and
docs/settings.md is generated from it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from dskd.config.base_recipe import BaseRecipe
from dskd.config.train_settings import TrainSettings
from dskd.data.augmentation import SETS, Augmentation, AugmentSet, AutoAugment, Interpolation
from dskd.data.catalog import Loading, title
from dskd.models.catalog import with_absolute_folder
from dskd.settings import (
    Count,
    Fraction,
    Natural,
    Number,
    PathSetting,
    Positive,
    Rate,
    Seed,
    Settings,
    Share,
    Weight,
    expand_path,
)
from dskd.storage.metric_names import Metric


def _class_choice(value: Any) -> Any:
    """Checks ``data.classes``. Class names may be numbers, as those of the digits are."""
    if isinstance(value, list | tuple):
        value = [str(name) if type(name) is int else name for name in value]
        if value and all(isinstance(name, str) for name in value):
            return value
    elif value is None or (type(value) is int and value >= 2):
        return value
    raise ValueError("how many classes, 2 or more, or a list of their names is needed")


def _shard_patterns(value: Any) -> Any:
    """Checks ``data.shards``."""
    patterns = value if isinstance(value, list | tuple) else [value]
    if value is None or (patterns and all(isinstance(one, str) and one for one in patterns)):
        return value
    raise ValueError("a pattern or a list of patterns is needed")


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if not values[0] < values[1]:
        raise ValueError("the first value must be below the second")
    return values


def _ordered(values: tuple[float, float] | None) -> tuple[float, float] | None:
    if values is not None and values[0] > values[1]:
        raise ValueError("the first value must not be above the second")
    return values


def _pretrained(value: Any) -> Any:
    """Checks ``pretrained``: true, false, or a file."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str | os.PathLike):
        return expand_path(value)
    raise ValueError("true, false or a file is needed")


def _of_each_channel(value: Any) -> Any:
    """One number stands for all channels."""
    return [value] if isinstance(value, int | float) else value


ValueRange = Annotated[tuple[Number, Number], AfterValidator(_rising)]
ShardPatterns = Annotated[str | list[str] | None, BeforeValidator(_shard_patterns)]
ClassChoice = Annotated[int | list[str] | None, BeforeValidator(_class_choice)]

_channels = BeforeValidator(_of_each_channel)
Pretrained = Annotated[bool | Path, BeforeValidator(_pretrained)]


class DataSettings(Settings):
    """The images, and how they are augmented."""

    name: str
    """A data set of ``dskd list datasets``."""
    root: PathSetting | None = None
    """Folder that holds the data set's files, or the file of a manifest. None downloads a published
    data set."""
    image_column: str | None = None
    """For hf: the column with the images. None takes the only one of the type Image. For a
    manifest: the column with the path of each image. None means ``path``. For webdataset: the
    suffix of the images. None needs one image in each sample."""
    label_column: str | None = None
    """For hf and a manifest: the column with the class. None means the only one of the type
    ClassLabel, or ``label``. For webdataset: a suffix, or a key of the JSON. None means the text of
    ``cls``, the key ``label``, or the text of ``txt``."""
    split_column: str | None = None
    """For a manifest: the column with the split: train, val (or valid, validation) or test. None
    means ``split``, if there is such a column."""
    shards: ShardPatterns = None
    """For webdataset: tar files, as a pattern like ``train-{0000..0009}.tar`` or ``*.tar``, a URL,
    or a list. Local ones are relative to data.root. Remote and compressed ones are copied once,
    into the cache folder."""
    hub: str | None = None
    """For hf: a name on the Hub of Hugging Face, as in ``uoft-cs/cifar10``, or with a
    configuration, as in ``name:configuration``. A folder is data.root."""
    size: Annotated[Count, Field(le=4096)] | None = None
    """Height and width of the images in pixels. None uses the data set's own size."""
    classes: ClassChoice = None
    """Classes to use: a number N for the first N, or a list of names. None uses all."""
    fraction: Share = 1.0
    """Fraction of the training images to use. It is the same in every class."""
    val_fraction: Fraction | None = None
    """Fraction of the training images held out for validation, after test_split. The split does not
    depend on the seed. None holds none out."""
    test_split: Annotated[Fraction, Field(gt=0)] | None = None
    """For your own images without val and test: fraction of the training images that becomes the
    test split. It does not depend on the seed. None means 0.2."""
    test_fraction: Share = 1.0
    """Fraction of the test and validation images to use, for quick trials. It is the same in every
    class."""
    channels: Literal[1, 3] | None = None
    """For your own images: 3 for RGB or 1 for gray. None means RGB; torch data sets keep theirs."""
    value_range: ValueRange | None = None
    """For your own images: the lowest and the highest value of a pixel, which become 0 and 255. For
    12 bits they are [0, 4095]. None uses the range of the file's type."""
    max_pixels: Count | None = None
    """For your own images: most pixels of an image file. None uses 89,478,485, Pillow's limit."""
    skip_bad: bool = False
    """For your own images: leave out files that cannot be used, and list them in the run's
    skipped_images.txt. By default they are an error."""
    augment: AugmentSet = "none"
    """Named set of the augmentations below; each can also be set on its own. ``none`` leaves their
    defaults. ``cifar``: crop_padding 4 and flip. ``imagenet``: crop_scale [0.08, 1] and flip.
    ``strong``: imagenet with trivialaugment and random_erasing 0.1, as torchvision trains. On the
    command line, it replaces the augmentations of the recipe file."""
    crop_padding: Annotated[Natural, Field(le=256)] = 0
    """Pixels of zero padding around an image before the random crop. 0 turns the crop off."""
    flip: bool = False
    """Mirror an image with probability 0.5."""
    crop_scale: Annotated[tuple[Share, Share] | None, AfterValidator(_ordered)] = None
    """Random resized crop: the smallest and the largest part of the image's area that is kept. None
    turns it off."""
    crop_ratio: Annotated[tuple[Positive, Positive], AfterValidator(_ordered)] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of the random resized crop's width to its height."""
    auto_augment: AutoAugment = "none"
    """``randaugment`` (two operations of magnitude 9), ``trivialaugment`` (one operation of random
    magnitude), or ``none``. Like color_jitter, it needs gray or RGB images."""
    color_jitter: Annotated[Weight, Field(le=1)] = 0.0
    """Largest relative change of brightness, contrast and saturation. 0 turns it off."""
    random_erasing: Annotated[Weight, Field(le=1)] = 0.0
    """Probability that a rectangle of an image becomes noise."""
    crop_pct: Share = 1.0
    """For your own images: the share of the shorter side that the central crop keeps in evaluation.
    The shorter side is resized to size / crop_pct, and the centre is cropped, as timm does it. In
    memory, training images are cropped in the same way."""
    interpolation: Interpolation | None = None
    """How your own images and random resized crops are resized: ``bilinear`` or ``bicubic``. None
    averages blocks of pixels where images shrink by a whole factor, and is bicubic otherwise."""
    labels: Literal["given", "none"] = "given"
    """For a folder: ``none`` takes all images in data.root, at any depth, as images without labels.
    The student learns from the teacher alone, and the classes are the teacher's. Agreement with the
    teacher is measured on the test split (test_split) in place of accuracy."""
    unlabelled: PathSetting | None = None
    """A folder of images without labels, at any depth. They join the training, and the student
    learns from the teacher's outputs for them. Files that are training, validation or test images
    are left out."""
    unlabelled_share: Annotated[Positive, Field(lt=1)] = 0.5
    """Share of each batch that comes from ``unlabelled``. An epoch is one pass over the labelled
    images."""
    loading: Loading = "auto"
    """For your own images: ``memory`` decodes all images once and keeps them on the device.
    ``stream`` decodes them in worker processes whenever they are used. ``auto`` streams images that
    would take more than a quarter of the machine's memory, free or not, divided by the run's
    processes on it, or more than a quarter of the GPU's memory, and says so."""
    workers: Natural | None = None
    """Processes that decode streamed images; 0 decodes in the training process. The images do not
    depend on this number. None starts one for each core, and at most 8."""
    cache_dir: PathSetting | None = None
    """Folder for downloads and decoded images. None uses the user's cache folder."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_set(cls, values: Any) -> Any:
        """Adds the settings that ``augment`` stands for; those that are given stay."""
        name = values.get("augment") if isinstance(values, dict) else None
        return {**SETS[name], **values} if isinstance(name, str) and name in SETS else values

    @property
    def title(self) -> str:
        """What a reader calls the images."""
        return title(self.name, self.root, self.hub)

    @property
    def metric(self) -> Metric:
        """What is measured on the images that are evaluated."""
        return "agreement" if self.labels == "none" else "accuracy"

    @property
    def augmentation(self) -> Augmentation:
        """What is done with the images besides the padded crop and the flip."""
        return Augmentation(
            self.crop_scale,
            self.crop_ratio,
            self.auto_augment,
            self.color_jitter,
            self.random_erasing,
            self.interpolation or "bicubic",
        )


AUGMENTATIONS = (
    "augment",
    "crop_padding",
    "flip",
    "crop_scale",
    "crop_ratio",
    "auto_augment",
    "color_jitter",
    "random_erasing",
)
"""The keys of ``data`` that say how training images are augmented."""


class ModelSettings(Settings):
    """The model to train."""

    name: str
    """A model of ``dskd list models``, ``timm/<name>``, ``torchvision/<name>``,
    ``hf/<owner>/<name>`` or ``hf/<folder>`` of the Hugging Face Hub, ``transformers/<model_type>``,
    or ``package.module:function``."""
    stages: Annotated[list[str], Field(min_length=1)] | None = None
    """Submodules whose outputs are the stages, shallow to deep. None uses those of a zoo model, and
    finds those of any other: the last submodule of each map size, or evenly spaced blocks of a
    transformer. ``dskd stages MODEL`` shows them."""
    mean: Annotated[list[Number], Field(min_length=1), _channels] | None = None
    """Mean of each channel, or one number for all, which is subtracted from pixels between 0 and 1.
    None uses that of the checkpoint or of the model, or else the data set's. A model that was
    trained on pixels between 0 and 1 needs mean 0 and std 1."""
    std: Annotated[list[Positive], Field(min_length=1), _channels] | None = None
    """Standard deviation of each channel, or one number for all. None: as for ``mean``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More arguments for the constructor of a model of timm or torchvision, or of your own
    function; keys of the configuration of a model of transformers."""
    pretrained: Pretrained = False
    """Initial weights; a classifier of other classes is left out. ``true``: those that timm,
    torchvision or the Hub has for the model, usually of ImageNet. They are downloaded once. A file:
    the weights in it. ``false`` draws all weights from the seed."""
    checkpoint: PathSetting | None = None
    """File with weights to start from. A classifier of other classes is left out. None draws all
    weights from the seed."""
    checkpoint_key: str | None = None
    """Where the weights are in the checkpoint, as in ``state_dict`` or ``ema.module``. None finds
    them, and takes the moving average (EMA) if there is one."""


class TeacherSettings(ModelSettings):
    """The model to learn from."""

    checkpoint: PathSetting | None = None
    """File with the teacher's weights. None trains the teacher first, into ``teacher`` in the run's
    folder."""
    trust: bool = False
    """Use a given teacher that is no better than a guess on the test images. By default it is
    refused, if there are enough test images to tell and the method reads its classes."""
    epochs: Natural | None = None
    """Epochs of the teacher's own training. None uses train.epochs. 0 uses pretrained weights as
    they are. If their classes are not those of the data, see head."""
    head: Literal["own", "fit"] = "own"
    """Where the teacher's logits come from. ``own``: from its classifier. If that is of other
    classes, methods that compare features learn from its features alone. ``fit``: from a linear
    layer that is fitted to its frozen features on the training images, once, and cached. The
    teacher needs weights of its own: a module, a checkpoint, or ``pretrained``."""
    lr: Rate | None = None
    """Learning rate of the teacher's own training, at most 1e6. None uses train.lr."""
    fuse_batchnorm: bool = True
    """Fuse the teacher's BatchNorm layers into its convolutions. This is faster and changes teacher
    outputs by rounding only."""
    cache: Literal["none", "logits", "features"] = "none"
    """Where teacher outputs come from. ``none``: every step computes them. ``logits``: the logits
    of each augmented view are computed once and cached on disk. ``features``: all outputs that the
    method reads are cached on disk, for a few fixed views of each image, and the student is trained
    on these views."""
    views: Count = 16
    """Fixed views of each image with ``cache: features``. If fewer views exist, all are used."""
    cache_dir: PathSetting | None = None
    """Folder of the cached outputs. None uses ``teacher-outputs`` in the user's cache folder."""

    @property
    def is_given(self) -> bool:
        """Whether no run trains it: it is a module, has a checkpoint, or is used as published."""
        trained = bool(self.checkpoint) or self.epochs == 0 or self.head == "fit"
        return trained or self.name.startswith("<")


class MethodSettings(Settings):
    """The distillation method and its own settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "dskd"
    """A method of ``dskd list methods``."""

    @property
    def options(self) -> dict[str, Any]:
        """The method's own settings."""
        return dict(self.model_extra or {})


class Recipe(BaseRecipe):
    """All settings of a run."""

    PATHS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("data", "root"),
        ("data", "unlabelled"),
        ("data", "cache_dir"),
        ("student", "checkpoint"),
        ("student", "pretrained"),
        ("teacher", "checkpoint"),
        ("teacher", "pretrained"),
        ("teacher", "cache_dir"),
    )
    AUGMENTATIONS: ClassVar[tuple[str, ...]] = AUGMENTATIONS

    data: DataSettings
    student: ModelSettings
    teacher: TeacherSettings | None = None
    method: MethodSettings = MethodSettings()
    train: TrainSettings = TrainSettings()
    seed: Seed = 0
    """Seed of everything random: initial weights, the order of the images, crops and flips."""
    out: PathSetting | None = None
    """The run's folder. None uses ``runs/<recipe>/<method>-seed<seed>``."""

    def plain(self) -> dict[str, Any]:
        """Converts the recipe to plain values; folders that name a model become absolute, too."""
        plain = super().plain()
        for section in ("student", "teacher"):
            if values := plain[section]:
                values["name"] = with_absolute_folder(values["name"])
        return plain
