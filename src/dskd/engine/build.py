"""From a recipe's settings to the objects of a run: images, models, seen through their stages."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from dskd.config.schema import DataSettings, ModelSettings
from dskd.data import Dataset, load_dataset, take_part
from dskd.errors import InputError
from dskd.models.factory import load_model, pretrained_statistics
from dskd.models.spec import ModelSpec, describe
from dskd.models.staged_model import StagedModel

PROBE = 16
"""Images that a model is shown to learn what it gives."""


@dataclass(frozen=True)
class UserObjects:
    """Objects that a Python caller gives in place of names.

    Attributes:
        data: In place of ``data.name``.
        student: In place of ``student.name``.
        teacher: In place of ``teacher.name``; it counts as trained.
        allow_code: Whether ``package.module:function`` names may run.
    """

    data: Dataset | None = None
    student: nn.Module | None = None
    teacher: nn.Module | None = None
    allow_code: bool = False


def name_of(given: object) -> str:
    """What a recipe calls an object that has no name: ``<ResNet>``."""
    return f"<{type(given).__name__}>"


def load_data(settings: DataSettings, given: Dataset | None = None) -> Dataset:
    """The images that a recipe names, or those given in place of them.

    Raises:
        InputError: They are not to be had, or a setting does not apply to images in memory.
    """
    if given is not None:
        for key in ("root", "size", "cache_dir"):
            if getattr(settings, key) is not None:
                raise InputError(f"data.{key} does not apply to images given in Python; drop it")
        return take_part(given, settings.classes, settings.fraction, settings.val_fraction)
    if settings.name.startswith("<"):
        raise InputError(
            f"this run's images were given in Python as {settings.name}; give them again, as "
            "in dskd.evaluate(run, data=dataset)"
        )
    chosen = settings.model_dump(exclude={"name", "crop_padding", "flip"})
    return load_dataset(settings.name, **chosen)


def build_model(
    settings: ModelSettings,
    data: Dataset,
    seed: int,
    given: nn.Module | None = None,
    allow_code: bool = False,
) -> StagedModel:
    """A model with fresh weights drawn from ``seed``, or a copy of the one given.

    The copy is what is trained, moved and frozen: the caller's own module stays as it is.
    """
    channels, height, _ = data.shape
    if given is not None:
        if settings.options:
            raise InputError("options do not apply to a module given in Python; drop them")
        module = copied(given)
    elif settings.name.startswith("<"):
        raise InputError(
            f"the model {settings.name} was given in Python; give it again, as in "
            "dskd.distill(student=module)"
        )
    else:
        torch.manual_seed(seed)
        module = load_model(
            settings.name,
            num_classes=len(data.classes),
            in_channels=channels,
            size=height,
            options=settings.options,
            allow_code=allow_code,
        )
    default_mean, default_std = pretrained_statistics(module, channels) or (data.mean, data.std)
    mean = settings.mean if settings.mean is not None else default_mean
    std = settings.std if settings.std is not None else default_std
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"mean and std of {settings.name} have {len(mean)} and {len(std)} channels, the "
            f"images {channels}; give {channels} of each"
        )
    return StagedModel(module, settings.stages, mean=mean, std=std)


def copied(module: nn.Module) -> nn.Module:
    """A copy of somebody's module.

    Raises:
        InputError: It cannot be copied, or keeps state that is no tensor.
    """
    try:
        twin = copy.deepcopy(module)
    except Exception as error:  # tensors with a history, weight_norm of old, open files
        raise InputError(
            f"{type(module).__name__} cannot be copied ({error}); give it as it is before its "
            "first forward pass, or by a function (package.module:function)"
        ) from error
    for key, value in twin.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"{type(module).__name__} keeps {key!r} in its state_dict, which is no tensor; "
                "files of weights hold tensors only"
            )
    return twin


def spec_of(model: StagedModel, data: Dataset, what: str) -> ModelSpec:
    """What a model gives for these images; refused where it has other classes.

    Args:
        model: On any device.
        data: The images.
        what: ``student`` or ``teacher``, for the error.
    """
    device = model.mean.device
    spec = describe(model, data.train.images[:PROBE].to(device))
    if spec.classes != len(data.classes):
        raise InputError(
            f"the {what} has {spec.classes} classes, the data set {data.name!r} has "
            f"{len(data.classes)}; give a {what} for these or choose data.classes"
        )
    return spec
