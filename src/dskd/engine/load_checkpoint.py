"""Load a file of weights into a teacher or a student, and use what the file says about them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dskd import methods
from dskd.config.schema import ModelSettings, TeacherSettings
from dskd.data import Dataset
from dskd.errors import InputError, brief
from dskd.models.hub_models import network, saved_student, student_file
from dskd.models.staged_model import StagedModel, find_classifier
from dskd.storage.file_facts import FileFacts
from dskd.storage.state_dicts import match_keys
from dskd.storage.weights import load_weights, read_weights

log = logging.getLogger("dskd")


def weights_file(settings: ModelSettings) -> Path | None:
    """The file of weights that the settings name, as ``checkpoint`` or as ``pretrained``.

    It is also the file of a student on the Hub that this package saved.
    """
    settings = with_saved_student(settings)
    if isinstance(settings.pretrained, Path):
        return settings.pretrained
    return settings.checkpoint


def with_saved_student(settings: ModelSettings) -> ModelSettings:
    """Settings with the network and the file of a student that was saved for the Hub.

    Such a student is used as its file is: with its classes by name, its normalisation, and the
    parts of its method.

    Args:
        settings: Of any model. They are returned as they are, unless they name such a student.

    Raises:
        InputError: The repository cannot be read.
    """
    student = saved_student(settings.name)
    if student is None:
        return settings
    name, options = network(settings.name, settings.options)
    found: dict[str, Any] = {"name": name, "options": options}
    if settings.pretrained is True:
        as_it_is = isinstance(settings, TeacherSettings) and settings.is_given
        found["pretrained"] = False if as_it_is else student_file(student)
        found["checkpoint"] = student_file(student) if as_it_is else None
    return settings.model_copy(update=found)


def assembled(module: nn.Module, facts: FileFacts) -> nn.Module:
    """A module with what its method has added to it, as simkd adds the teacher's classifier.

    Args:
        module: The plain model. It becomes a part of the result.
        facts: Of the file that has the weights.

    Raises:
        InputError: The facts do not fit the module.
    """
    if facts.method is None or not facts.deploy_config:
        return module
    return methods.find(facts.method).assemble(module, facts.deploy_config)


def load_file(
    model: StagedModel, settings: ModelSettings, facts: FileFacts | None, data: Dataset
) -> None:
    """Loads the file of weights that the settings name.

    The checkpoint of a teacher must fit wholly. If it has the classes in another order, the logits
    are put into the order of the data set; if it has other classes, they are ignored. A student and
    pretrained weights may have another classifier, which is left out.

    Args:
        model: Gets the weights.
        settings: With a file.
        facts: What the file says; None for a file of another program.
        data: The data set of the run.

    Raises:
        InputError: The file cannot be read, does not fit, or is of other channels.
    """
    path = weights_file(settings)
    assert path is not None
    what = f"the {role(settings)} checkpoint {path}"
    if settings.pretrained:  # a teacher is trained from them as a student is
        what = f"the pretrained weights {path}"
    weights = read_weights(path, settings.checkpoint_key)
    if facts is not None and facts.shape is not None:
        _check_shape(facts.shape, data, what)
    if settings.pretrained or not isinstance(settings, TeacherSettings):
        if facts is not None and facts.deploy_config:
            weights = _plain(model.module, weights, facts, what)
        _start(settings.name, model, weights, facts, data, what)
        return
    order = None
    if (others := _other_classes(facts, data)) is not None:
        log.info(
            "%s has the classes %s, and %s has %s",
            *(what, brief(list(others)), data.name, brief(list(data.classes))),
        )
        model.ignore_logits(len(others), len(data.classes))
    else:
        order = _class_order(facts, data)
    load_weights(model.module, weights, what)
    if order is not None:
        log.info("%s has its classes in another order; its logits are mapped by name", what)
        model.class_order = torch.tensor(order, device=model.mean.device)


def _plain(
    module: nn.Module, weights: Mapping[str, Tensor], facts: FileFacts, what: str
) -> dict[str, Tensor]:
    """The plain model's part of the weights of a model to which a method has added something."""
    plain = copy.deepcopy(module)
    load_weights(assembled(plain, facts), weights, what)
    return plain.state_dict()


def role(settings: ModelSettings) -> str:
    """The part of the recipe that the settings belong to: ``teacher`` or ``student``."""
    return "teacher" if isinstance(settings, TeacherSettings) else "student"


def _check_shape(shape: tuple[int, int, int], data: Dataset, what: str) -> None:
    if shape[0] != data.shape[0]:
        raise InputError(
            f"{what} is of a model for images with {shape[0]} channels, and the images of "
            f"{data.name} have {data.shape[0]}; give a checkpoint for these"
        )
    if shape != data.shape:
        log.info(
            "%s was trained on images of %dx%d, and those of %s are %dx%d",
            *(what, shape[2], shape[1], data.name, data.shape[2], data.shape[1]),
        )


def _other_classes(facts: FileFacts | None, data: Dataset) -> Sequence[str] | None:
    """The classes of a file, if it says that they are not those of the data."""
    if facts is None or facts.classes is None or sorted(facts.classes) == sorted(data.classes):
        return None
    return facts.classes


def classes_in_file(
    module: nn.Module, settings: ModelSettings, facts: FileFacts | None, data: Dataset
) -> int:
    """The number of classes of a teacher's checkpoint.

    Args:
        module: The teacher, for the classes of the data.
        settings: With a checkpoint.
        facts: What the file says; None for a file of another program.
        data: The data set of the run.

    Returns:
        That of the data if the file does not tell.
    """
    if facts is not None and facts.classes is not None:
        return len(facts.classes)
    path, classifier = weights_file(settings), find_classifier(module)
    assert path is not None, "it has a checkpoint"
    if classifier is None:
        return len(data.classes)
    key = f"{classifier}.weight"
    weights = match_keys(read_weights(path, settings.checkpoint_key), module, f"{path}")
    there, here = weights.get(key), module.state_dict().get(key)  # it may be no plain layer
    if there is None or here is None:
        return len(data.classes)
    fits = there.shape[1:] == here.shape[1:] and len(here) == len(data.classes)
    return len(there) if fits else len(data.classes)


def _class_order(facts: FileFacts | None, data: Dataset) -> list[int] | None:
    """Where the file has each class of the data set; None if the order is the same or unknown."""
    if facts is None or facts.classes is None or facts.classes == data.classes:
        return None
    return [facts.classes.index(name) for name in data.classes]


def _start(
    name: str,
    model: StagedModel,
    weights: Mapping[str, Tensor],
    facts: FileFacts | None,
    data: Dataset,
    what: str,
) -> None:
    """Loads initial weights; a classifier of other classes, or none at all, keeps its own."""
    own = model.module.state_dict()
    fitted = match_keys(weights, model.module, what)
    head = {key for key in own if _in_classifier(model, key)}
    others = facts is not None and facts.classes not in (None, data.classes)
    classes = len(data.classes)
    left_out = {key for key in head if others or key not in fitted}
    left_out |= {k for k in own.keys() & fitted.keys() if _differs(fitted[k], own[k], classes)}
    load_weights(model.module, {**fitted, **{key: own[key] for key in left_out}}, what)
    if left_out:
        log.info(
            "%s: the classifier (%s) is left out, as its classes are not those of %s; it starts "
            "from random weights",
            *(what, ", ".join(sorted(left_out)), data.name),
        )
    log.info("%s starts from %s", name, what)


def _in_classifier(model: StagedModel, key: str) -> bool:
    return model.classifier is not None and key.startswith(f"{model.classifier}.")


def _differs(there: Tensor, here: Tensor, classes: int) -> bool:
    """Whether a tensor has one row for each class, and the file's has another number of rows."""
    same = there.dim() > 0 and there.shape[1:] == here.shape[1:]
    return same and len(here) == classes and len(there) != classes
