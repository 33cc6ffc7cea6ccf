"""From the settings of the data to the data set of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dskd.config.schema import AUGMENTATIONS, DataSettings
from dskd.data import Dataset, load_dataset, take_part
from dskd.data.catalog import are_files, are_own
from dskd.data.dataset import Split
from dskd.data.hf import HFSplits
from dskd.data.pixels import PixelForm
from dskd.data.read_options import ImageOptions, default_workers, read_options
from dskd.data.subset import HELD_OUT
from dskd.data.torch_dataset import TorchSplits
from dskd.data.unlabelled_folder import join_unlabelled, shared_workers, without_labels
from dskd.engine.user_objects import GivenData
from dskd.errors import InputError

OF_IMAGES_IN_MEMORY = {
    "name",
    "classes",
    "fraction",
    "val_fraction",
    "test_fraction",
    "interpolation",
    "unlabelled",
    "unlabelled_share",
} | {*AUGMENTATIONS}
"""The keys of ``data`` that apply to images given in Python."""
OF_SAMPLES = {"test_split", "size", "channels", "value_range", "crop_pct", "loading", "workers"}
"""The keys that apply to torch's data sets, too."""
OF_FILES = {
    "value_range",
    "max_pixels",
    "skip_bad",
    "crop_pct",
    "interpolation",
    "loading",
    "workers",
}
"""The keys that say how image files are read, and so apply to ``data.unlabelled``, too."""
OF_PLACES = {"root", "split_column", "shards", "hub"}
"""The keys that say where images lie."""


def load_data(settings: DataSettings, given: GivenData | None = None) -> Dataset:
    """The data set that a recipe names, or the one given in place of it.

    Raises:
        InputError: It cannot be read, or a setting does not apply to images given in Python.
    """
    if given is not None:
        return _given(settings, given)
    if settings.name.startswith("<"):
        raise InputError(
            f"this run's images were given in Python as {settings.name}; give them again there, as "
            "in dskd.evaluate(run, data=dataset) or dskd.write_report(run, data=dataset)"
        )
    if are_own(settings.name):
        _check_resizing(settings, settings.size is not None)
    if settings.labels == "none":
        return _without_labels(settings)
    left_out = {"name", "labels", "unlabelled", "unlabelled_share", *AUGMENTATIONS}
    if settings.unlabelled is not None and not are_files(settings.name):
        left_out |= OF_FILES - {"interpolation"}
    return load_dataset(settings.name, **settings.model_dump(exclude=left_out))


def load_training_data(settings: DataSettings, given: GivenData | None = None) -> Dataset:
    """The data set of `load_data`, with the images of ``data.unlabelled``.

    Raises:
        InputError: As `load_data`, or the images without labels cannot be read.
    """
    data = _with_unlabelled(settings, given)
    return replace(data, notes=(*data.notes, *_crop_notes(settings, data)))


def _crop_notes(settings: DataSettings, data: Dataset) -> list[str]:
    """Says where random resized crops come from, if not from the original images."""
    is_resized = settings.size is not None and isinstance(data.train, Split)
    if settings.crop_scale is None or not are_own(settings.name) or not is_resized:
        return []
    return [
        f"random crops are cut from the centre of the images at {settings.size}x{settings.size}, "
        "as they are in memory; data.loading=stream cuts them from the whole original images"
    ]


def _with_unlabelled(settings: DataSettings, given: GivenData | None) -> Dataset:
    data = load_data(settings, given)
    if settings.unlabelled is None:
        if data.unlabelled is None and not settings.is_default("unlabelled_share"):
            raise InputError(
                "data.unlabelled_share is the share of images without labels, and there are none; "
                "set data.unlabelled, or drop it"
            )
        return data
    _, height, width = data.shape
    side = height if height == width else None  # data.crop_pct needs one
    options = read_options(side, None, **_image_options(settings))
    return join_unlabelled(
        data,
        settings.unlabelled,
        options,
        settings.cache_dir,
        own_root=_folder_of_names(settings) if given is None else None,
        share=settings.unlabelled_share,
    )


def _without_labels(settings: DataSettings) -> Dataset:
    """The images of a folder, none of which has a label."""
    if settings.name != "folder" or settings.root is None:
        raise InputError(
            "data.labels=none takes all images of a folder; give data.name=folder and data.root, "
            "or drop it"
        )
    of_images = {"name", "root", "size", "channels", "cache_dir", "labels", "interpolation"}
    of_images |= {"fraction", "val_fraction", "test_split", "test_fraction"}
    of_images |= {*OF_FILES, *AUGMENTATIONS}
    for key in DataSettings.model_fields.keys() - of_images - {"crop_ratio"}:
        if not settings.is_default(key):
            raise InputError(f"data.{key} does not apply to data.labels=none; drop one of both")
    images: Any = {**_image_options(settings), "channels": settings.channels}
    options = read_options(settings.size, None, **images)
    try:
        data = without_labels(
            settings.root, options, settings.cache_dir, settings.test_split or HELD_OUT
        )
    except OSError as error:
        raise InputError(f"cannot read {settings.root}: {error}; check data.root") from error
    return take_part(data, None, *_fractions(settings))


def _image_options(settings: DataSettings) -> ImageOptions:
    options: Any = {key: getattr(settings, key) for key in OF_FILES}
    found: ImageOptions = options
    return found


def _given(settings: DataSettings, given: GivenData) -> Dataset:
    """The data set that was given in Python."""
    refused = DataSettings.model_fields.keys() - OF_IMAGES_IN_MEMORY
    if isinstance(given, TorchSplits):
        refused -= OF_SAMPLES
    if isinstance(given, HFSplits):
        refused = {*OF_PLACES, "labels"}
    if settings.unlabelled is not None:
        refused -= OF_FILES | {"cache_dir"}
    for key in sorted(refused):
        if not settings.is_default(key):
            raise InputError(f"data.{key} does not apply to images given in Python; drop it")
    has_others = isinstance(given, TorchSplits) and given.unlabelled is not None
    resizes = None if isinstance(given, Dataset) else settings.size is not None
    _check_resizing(settings, resizes, has_others)
    data = _read(settings, given)
    if data.unlabelled is not None:
        train, others = shared_workers(data.train, data.unlabelled, settings.unlabelled_share)
        data = replace(data, train=train, unlabelled=others)
    return take_part(data, settings.classes, *_fractions(settings))


def _check_resizing(settings: DataSettings, resizes: bool | None, has_others: bool = False) -> None:
    """Refuses a way of resizing where nothing is resized, and a crop of a part of the images.

    Args:
        settings: Of the data.
        resizes: Whether images are resized; None if they cannot be, since they are in memory.
        has_others: Whether there are images without labels that ``data.unlabelled`` does not name;
            they get the size of the others.

    Raises:
        InputError: ``crop_pct`` or ``interpolation`` would do nothing.
    """
    if resizes is False and settings.crop_pct != 1:
        raise InputError("data.crop_pct needs data.size, to which the images are resized")
    has_others = has_others or settings.unlabelled is not None
    is_used = resizes or settings.crop_scale is not None or has_others
    if settings.interpolation is not None and not is_used:
        uses = "data.crop_scale" if resizes is None else "data.size or data.crop_scale"
        raise InputError(f"data.interpolation does nothing without {uses}; drop it")


def _fractions(settings: DataSettings) -> tuple[float, float, float]:
    """Of the training, validation and test images."""
    return settings.fraction, settings.val_fraction or 0.0, settings.test_fraction


def _read(settings: DataSettings, given: GivenData) -> Dataset:
    """All images that were given in Python."""
    match given:
        case TorchSplits():
            if given.validation is not None and settings.val_fraction:
                raise InputError("data has a validation split of its own; drop data.val_fraction")
            return given.read(
                size=settings.size,
                channels=settings.channels,
                form=PixelForm(
                    value_range=settings.value_range,
                    crop_pct=settings.crop_pct,
                    interpolation=settings.interpolation,
                ),
                test_split=settings.test_split,
                loading=settings.loading,
                workers=default_workers() if settings.workers is None else settings.workers,
            )
        case HFSplits():
            images = settings.model_dump(include={*ImageOptions.__annotations__} - OF_PLACES)
            options = replace(
                read_options(settings.size, settings.test_split, **images),
                val_fraction=settings.val_fraction or 0.0,
            )
            return given.read(options, settings.cache_dir)
    return given


def _folder_of_names(settings: DataSettings) -> Path | None:
    """The folder that the names of the labelled images are relative to, if they are files."""
    root = settings.root
    return {"folder": root, "manifest": root and root.parent}.get(settings.name)
