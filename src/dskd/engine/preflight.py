"""Checks before any work: what cannot be trained is refused in one line, and nothing is written."""

from __future__ import annotations

import copy

import torch

from dskd import methods
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.epoch_plan import MIN_SAMPLES
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_method, build_trainer
from dskd.engine.keep_exits import check_exits
from dskd.engine.method_warnings import log_warnings
from dskd.engine.mixing import check_mixes
from dskd.engine.optimizer import set_rate
from dskd.engine.other_classes import log_other_classes
from dskd.engine.sync_batchnorm import check_norms
from dskd.engine.targets import check_learns_labels
from dskd.engine.trainer import Trainer
from dskd.engine.unlabelled import check_unlabelled, training_loader
from dskd.errors import InputError, NonFiniteError, brief, first_line
from dskd.methods.base import Method
from dskd.methods.contracts import TeacherNeeds
from dskd.models.staged_model import StagedModel
from dskd.runtime import distributed
from dskd.teacher.cache import check_cacheable
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs

REHEARSED = 8
"""Samples of the rehearsed step."""


def check_processes(recipe: Recipe, device: torch.device) -> None:
    """Refuses what the processes that torchrun started cannot train together.

    Args:
        recipe: The run.
        device: Of this process.

    Raises:
        InputError: The method or the batch size does not allow it, or BatchNorm cannot be
            synchronised.
    """
    processes = distributed.launched_world_size()
    if recipe.train.sync_batchnorm and (processes == 1 or device.type != "cuda"):
        raise InputError(
            "train.sync_batchnorm works between several processes on GPUs, and this run has "
            f"{processes} on {device.type}; drop it"
        )
    if processes == 1:
        return
    if not methods.find(recipe.method.name).distributed:
        raise InputError(
            f"the method {recipe.method.name!r} keeps state that processes do not share, and "
            f"torchrun started {processes}; start it without torchrun"
        )
    if recipe.train.batch_size < MIN_SAMPLES * processes:
        raise InputError(
            f"train.batch_size={recipe.train.batch_size} leaves some of {processes} processes "
            f"fewer than {MIN_SAMPLES} images a step; set {MIN_SAMPLES * processes} or more, or "
            "start fewer processes"
        )


def check_split_size(data: Dataset) -> None:
    """Refuses images of a single class, and a training split too small for all processes.

    Raises:
        InputError: It is either.
    """
    if len(data.classes) == 1 and not data.without_labels:
        raise InputError(
            f"only one class ({brief(data.classes[0])}) was found, and two or more are needed; "
            "give images of each class (in data.root, a folder for each)"
        )
    processes = distributed.launched_world_size()
    if processes > 1 and len(data.train.labels) < MIN_SAMPLES * processes:
        raise InputError(
            f"{len(data.train.labels)} training images are too few for {processes} "
            f"processes with {MIN_SAMPLES} each; start fewer processes"
        )


def rehearse(
    recipe: Recipe, data: Dataset, student: StagedModel, teacher: StagedModel | None
) -> TeacherNeeds:
    """Takes one training step with copies of the models, to see that the run can be trained.

    Args:
        recipe: The run.
        data: Its data set.
        student: Stays as it is.
        teacher: Stays as it is; None without a teacher.

    Returns:
        Which of the teacher's outputs the method reads.

    Raises:
        InputError: Data, student, teacher and method do not fit each other.
        NonFiniteError: A number of the step is NaN or infinite.
    """
    frozen = None if teacher is None else FrozenTeacher(copy.deepcopy(teacher))
    method = _built(recipe, data, copy.deepcopy(student), frozen)
    if teacher is not None and teacher.other_classes is not None:
        log_other_classes(recipe.method.name, recipe.method.options, teacher, method.classes)
    log_warnings(method)
    if recipe.train.compile:
        _check_compiles(recipe.method.name, method)
    if recipe.teacher is not None and recipe.teacher.cache != "none":
        check_cacheable(recipe.teacher.cache, method.needs, recipe.method.name)
    check_mixes(recipe.train, method, recipe.method.name)
    check_learns_labels(recipe.train, method, recipe.method.name)
    check_unlabelled(recipe, data, method)
    if recipe.train.int8_rounding:
        _check_int8(recipe)
    if recipe.train.sync_batchnorm:
        check_norms(method)
    if recipe.train.exits:
        if recipe.data.labels == "none":
            raise InputError(
                "train.exits=true calibrates the exits by labels, and data.labels=none reads none; "
                "drop one of them"
            )
        check_exits(recipe.method.name, method, data)
    loader = training_loader(recipe, DataLoaders(data, torch.device("cpu")))
    _rehearse_step(build_trainer(recipe, method, TeacherOutputs(frozen), loader))
    return method.needs


def _built(
    recipe: Recipe, data: Dataset, student: StagedModel, teacher: FrozenTeacher | None
) -> Method:
    """The method for these models. One that remembers labels may not fit images without them."""
    try:
        return build_method(recipe, data, student, teacher)
    except InputError as error:
        name = recipe.method.name
        if not data.without_labels or not methods.find(name).remembers_images:
            raise
        raise InputError(
            f"data.labels=none: the method {name!r} remembers the label of each image, and there "
            "are none; take another method, such as kd or dskd"
        ) from error


def _check_int8(recipe: Recipe) -> None:
    """Refuses rounding where it would not round the student that is shipped, or cannot be used.

    Raises:
        InputError: The method ships another module than the one it trains, or the recipe compiles
            or keeps early exits.
    """
    name = recipe.method.name
    if methods.find(name).deployed is not Method.deployed:
        raise InputError(
            f"train.int8_rounding=true: the method {name} ships another module than the student "
            "that it trains, so its classifier would not be rounded; drop it, or take another "
            "method"
        )
    if recipe.train.compile:
        raise InputError(
            "train.int8_rounding=true is not compiled, as ranges are measured in each step; drop "
            "train.compile"
        )
    if recipe.train.exits:
        raise InputError(
            "train.int8_rounding=true prepares the student for 8 bits, and early exits are not "
            "exported in 8 bits; drop it, or train.exits"
        )


def _check_compiles(name: str, method: Method) -> None:
    """Refuses to compile a method that says so.

    Raises:
        InputError: It cannot be compiled.
    """
    if method.uncompiled:
        raise InputError(
            f"train.compile=true: the method {name} is not compiled: {method.uncompiled}; drop it"
        )


def _rehearse_step(trainer: Trainer) -> None:
    """One step in training mode with a few samples. The trainer's weights change.

    Raises:
        InputError: The step fails.
        NonFiniteError: A loss, a gradient or the teacher's logits are not finite.
    """
    trainer.method.train()
    set_rate(trainer.optimizer, 0.0)
    try:
        batch_size = min(trainer.batch_size, REHEARSED)
        batch = next(trainer.loader.batches(trainer.plan(0, batch_size), batch_size))
        trainer.take_step(trainer.with_targets(batch))
    except (InputError, NonFiniteError):
        raise
    except Exception as error:  # a user's module may raise anything
        name = type(trainer.method.deployed()).__name__
        raise InputError(
            f"{name} cannot be trained on these images: {first_line(error)}"
        ) from error
