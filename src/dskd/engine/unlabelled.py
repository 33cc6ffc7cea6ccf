"""Images without labels in a run: which methods use them, and the loader that adds them."""

from __future__ import annotations

import logging
import math

from dskd import methods
from dskd.config.schema import DataSettings, Recipe
from dskd.data import Dataset
from dskd.data.joint_loader import JointLoader
from dskd.data.joint_plan import step_sizes, unlabelled_bounds
from dskd.data.loader import DataLoaders, Loader
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.runtime import distributed

log = logging.getLogger("dskd")


def training_loader(recipe: Recipe, data: DataLoaders) -> Loader:
    """The loader of a run's training images, with those without labels if the method uses them.

    Args:
        recipe: The run.
        data: Its loaders.
    """
    if not _learns_from_teacher(recipe):
        return data.train
    return teacher_loader(recipe.data, data)


def teacher_loader(settings: DataSettings, data: DataLoaders) -> Loader:
    """The loader of all images that the teacher sees.

    Args:
        settings: Of the data.
        data: Its loaders.
    """
    if data.unlabelled is None:
        return data.train
    return JointLoader(data.train, data.unlabelled, settings.unlabelled_share)


def check_unlabelled(recipe: Recipe, data: Dataset, method: Method) -> None:
    """Refuses images without labels that a run cannot use.

    A method without a teacher has nothing to learn from them, and is trained on the labelled ones.

    Args:
        recipe: The run.
        data: Its images.
        method: Built for them.

    Raises:
        InputError: The method needs the class of each image, a batch is too small for both kinds,
            or an epoch would have no image without a label.
    """
    if data.without_labels:
        _check_without_labels(recipe, method)
    if data.unlabelled is None or not _learns_from_teacher(recipe):
        return
    if method.hard_labels:
        raise InputError(
            f"data.unlabelled gives images without labels, and the method {recipe.method.name!r} "
            f"needs one class for each: {method.hard_labels}; drop data.unlabelled, or take "
            "another method, such as kd or dskd"
        )
    labelled, share = len(data.train), recipe.data.unlabelled_share
    # With train.accumulate, a step has several parts; memory is planned for one of them.
    step_sizes(recipe.train.batch_size, share, distributed.launched_world_size())
    if not unlabelled_bounds(labelled, *_step(recipe))[-1]:
        enough = math.ceil(100 / (labelled + 1)) / 100
        raise InputError(
            f"data.unlabelled_share={share:g} leaves no image without a label beside the "
            f"{labelled} labelled ones of an epoch; set it to {enough:g} or more, or drop "
            "data.unlabelled"
        )


def log_unlabelled(recipe: Recipe, data: Dataset) -> None:
    """Logs whether a run uses the images without labels, if there are any."""
    name = recipe.method.name
    if data.without_labels:
        log.info(
            "there are no labels: the method %s learns from the teacher alone, and its terms for "
            "labels (method.ce) are off",
            name,
        )
    if data.unlabelled is None:
        return
    if not _learns_from_teacher(recipe):
        log.info(
            "the method %s learns from labels alone: the %d images without labels are not used",
            *(name, len(data.unlabelled)),
        )
        return
    log.info(
        "the method %s learns from %d images with and %d without labels: %d and %d in a full step",
        *(name, len(data.train), len(data.unlabelled), *step_sizes(*_step(recipe))),
    )


def labels_alone_error(name: str) -> InputError:
    """The error about a method without a teacher, for images without labels."""
    return InputError(
        f"data.labels=none: the method {name!r} learns from labels alone, and there are none; take "
        "a method that learns from a teacher, such as kd or dskd"
    )


def _check_without_labels(recipe: Recipe, method: Method) -> None:
    """Refuses what needs a label of each image."""
    name, train = recipe.method.name, recipe.train
    if not _learns_from_teacher(recipe):
        raise labels_alone_error(name)
    if method.hard_labels:
        raise InputError(
            f"data.labels=none: the method {name!r} needs one class for each image: "
            f"{method.hard_labels}; take another method, such as kd or dskd"
        )
    for key, wanted in (
        ("label_smoothing", train.label_smoothing > 0),
        ("class_weights", train.class_weights is not None),
    ):
        if wanted:
            raise InputError(
                f"train.{key} changes what is learnt from labels, and data.labels=none says that "
                "there are none; drop one of both"
            )


def _step(recipe: Recipe) -> tuple[int, float, int]:
    """Images of a step, the share of those without labels, and the number of processes."""
    size = recipe.train.batch_size * recipe.train.accumulate
    return size, recipe.data.unlabelled_share, distributed.launched_world_size()


def _learns_from_teacher(recipe: Recipe) -> bool:
    return methods.find(recipe.method.name).needs_teacher
