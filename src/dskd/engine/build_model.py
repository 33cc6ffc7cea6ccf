"""From the settings of a model to the model, and its measured outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dskd.config.schema import ModelSettings, TeacherSettings
from dskd.data import Dataset
from dskd.engine.load_checkpoint import (
    assembled,
    classes_in_file,
    load_file,
    weights_file,
    with_saved_student,
)
from dskd.engine.named_classes import match_names
from dskd.engine.normalization import normalization
from dskd.errors import InputError
from dskd.models.default_stages import default_stages
from dskd.models.factory import load_model
from dskd.models.native import published_classes
from dskd.models.plain_copy import plain_copy
from dskd.models.spec import ModelSpec, describe
from dskd.models.stage_table import stage_rows
from dskd.models.staged_model import StagedModel
from dskd.models.trace import TRACED
from dskd.storage.file_facts import FileFacts, read_facts

PROBE = 16
"""Images of the forward pass that measures the shapes of a model's outputs."""


def build_model(
    settings: ModelSettings,
    data: Dataset,
    seed: int,
    given: nn.Module | None = None,
    allow_code: bool = False,
) -> StagedModel:
    """A model with fresh weights drawn from ``seed``, or a copy of the one given.

    It gets the weights of its checkpoint, if the settings name one, and default stages, if they
    name none.

    The copy is trained, moved and frozen; the caller's own module stays as it is. Wrappers, such as
    torch.compile and DataParallel, are left out of the copy.
    """
    channels, height, _ = data.shape
    if given is None:
        settings = with_saved_student(settings)
    facts = read_facts(weights_file(settings))
    if given is not None:
        module = _copied(given, settings, seed)
    elif settings.name.startswith("<"):
        raise InputError(
            f"the model {settings.name} was given in Python; give it again, as in "
            "dskd.distill(student=module)"
        )
    else:

        def build(classes: int) -> nn.Module:
            torch.manual_seed(seed)
            return load_model(
                settings.name,
                num_classes=classes,
                in_channels=channels,
                size=height,
                options=settings.options,
                allow_code=allow_code,
                pretrained=settings.pretrained is True,
            )

        module = _with_its_classes(build, settings, facts, data)
    mean, std = normalization(settings, module, data, facts)
    if facts is not None and isinstance(settings, TeacherSettings) and not settings.pretrained:
        module = assembled(module, facts)
    model = StagedModel(module, settings.stages, mean=mean, std=std)
    if settings.stages is None:
        images = model.normalize(data.train.images_at(torch.arange(min(TRACED, len(data.train)))))
        stages = default_stages(module, images)
        if stages is not None:
            model = StagedModel(module, stages, mean=mean, std=std)
            model.chosen_stages = stage_rows(model, images)
    if weights_file(settings) is not None:
        load_file(model, settings, facts, data)
    if is_as_published(settings):
        _match_classes(model, settings, data)
    return model


def _copied(given: nn.Module, settings: ModelSettings, seed: int) -> nn.Module:
    if settings.options:
        raise InputError("options do not apply to a module given in Python; drop them")
    if settings.pretrained:
        raise InputError("pretrained does not apply to a module given in Python; drop it")
    torch.manual_seed(seed)  # its lazy layers draw their weights in their first forward pass
    return plain_copy(given)


def _with_its_classes(
    build: Callable[[int], nn.Module],
    settings: ModelSettings,
    facts: FileFacts | None,
    data: Dataset,
) -> nn.Module:
    """The model for the classes of the data; a trained teacher for those of its weights."""
    classes = len(data.classes)
    is_trained = isinstance(settings, TeacherSettings) and settings.is_given
    if is_as_published(settings):
        return build(published_classes(settings.name) or classes)
    module = build(classes)
    if is_trained and settings.checkpoint is not None:
        own = classes_in_file(module, settings, facts, data)
        return module if own == classes else build(own)
    return module


def _match_classes(model: StagedModel, settings: ModelSettings, data: Dataset) -> None:
    """Puts the logits of a published teacher into the data's order, or turns them off."""
    fits_head = isinstance(settings, TeacherSettings) and settings.head == "fit"
    if published_classes(settings.name) == 0 and not fits_head:
        model.ignore_logits(0, len(data.classes))  # its classifier has random weights
    else:
        match_names(model, settings.name, data)


def is_as_published(settings: ModelSettings) -> bool:
    """Whether a model is a teacher that is used with the classes of its published weights."""
    is_trained = isinstance(settings, TeacherSettings) and settings.is_given
    return is_trained and settings.pretrained is True


def measure_model(model: StagedModel, data: Dataset, what: str) -> ModelSpec:
    """Classes and shapes of a model's outputs, measured on a few images.

    Args:
        model: On any device.
        data: The data set.
        what: ``student`` or ``teacher``, for the error.

    Raises:
        InputError: Its number of classes is not the data set's.
    """
    device = model.mean.device
    few = data.train.images_at(torch.arange(min(PROBE, len(data.train))))
    spec = describe(model, few.to(device))
    if spec.classes != len(data.classes):
        raise InputError(
            f"the {what} has {spec.classes} classes, the data set {data.name!r} has "
            f"{len(data.classes)}; give a {what} for these or choose data.classes"
        )
    return spec
