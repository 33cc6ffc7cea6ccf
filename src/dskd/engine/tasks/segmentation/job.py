"""A run on images with masks, from its recipe to the training run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from dskd.engine.prepare import check_device
from dskd.engine.seeds import seed_of_part
from dskd.engine.tasks.build import build_trainer as build_task_trainer
from dskd.engine.tasks.job import TaskJob, needs_teacher
from dskd.engine.tasks.metadata import metadata_if_any
from dskd.engine.tasks.segmentation.base import SegmentationMethod
from dskd.engine.tasks.segmentation.dataset import SegmentationData
from dskd.engine.tasks.segmentation.loader import SegmentationLoaders, Supervision
from dskd.engine.tasks.segmentation.metadata import read_student_metadata
from dskd.engine.tasks.segmentation.methods import METHODS
from dskd.engine.tasks.segmentation.recipe import RECIPES
from dskd.engine.tasks.segmentation.settings import (
    Normalize,
    SegmentationModelSettings,
    SegmentationRecipe,
)
from dskd.engine.tasks.segmentation.sources import load_images
from dskd.engine.tasks.segmentation.task import SEGMENTATION
from dskd.engine.tasks.segmentation.unet import SegmentationModel, UNet
from dskd.engine.teacher_run import train_in_folder
from dskd.engine.teacher_split import warn_of_other_split
from dskd.engine.trainer import Trainer
from dskd.engine.training_run import TrainingRun
from dskd.errors import InputError, as_given
from dskd.methods.contracts import Pair
from dskd.models.spec import ModelSpec, describe
from dskd.models.staged_model import StagedModel
from dskd.runtime import distributed
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import LAST, TEACHER
from dskd.storage.weights import load_weights, read_weights
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs

log = logging.getLogger("dskd")


class SegmentationJob(TaskJob):
    """A run on images with masks.

    Args:
        recipe: The run.
    """

    _data: SegmentationData
    _device: torch.device
    _teacher: FrozenTeacher | None

    def __init__(self, recipe: SegmentationRecipe) -> None:
        super().__init__(recipe)
        self._recipe = recipe

    def check_processes(self, device: torch.device) -> None:
        """See `Job.check_processes`."""
        distributed.require_single_process("a run on images with masks")

    def prepare(self, device: torch.device, *, begun: bool) -> None:
        """Reads the images, builds the method once, and reads a given teacher."""
        recipe = self._recipe
        check_device(recipe.train, device)
        self._device, self._data = device, load_data(recipe)
        self._teacher = None
        if needs_teacher(recipe) and not self.trains_teacher:
            assert recipe.teacher is not None, "the recipe is checked"
            self._teacher = read_teacher(recipe, self._data, device)
        rehearse(recipe, self._data)

    def build(self, directory: RunDirectory, *, resume: bool) -> TrainingRun:
        """Trains the teacher if it is not given, and builds the run."""
        teacher = self._teacher
        if self.trains_teacher:
            folder = directory.path / TEACHER
            teacher = trained_teacher(self._recipe, self._data, folder, self._device, resume)
        return build_run(self._recipe, self._data, TeacherOutputs(teacher), directory, self._device)


def load_data(recipe: SegmentationRecipe) -> SegmentationData:
    """The images of a recipe; logs what the user should know of them."""
    data = load_images(recipe.split_data)
    for note in data.notes:
        log.info(as_given(note))
    return data


def build_model(
    settings: SegmentationModelSettings, data: SegmentationData, normalize: Normalize, seed: int
) -> SegmentationModel:
    """A network with weights from the seed.

    Args:
        settings: Of the network.
        data: The images; it is normalised by the mean and standard deviation of those for training,
            unless each image has its own.
        normalize: See `SegmentationDataSettings`.
        seed: Of the weights.
    """
    mean, std = data.statistics()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet(len(data.classes), data.shape[0], settings.width, settings.dropout)
    return SegmentationModel(net, mean=mean, std=std, by_image=normalize == "image")


def build_method(
    recipe: SegmentationRecipe, data: SegmentationData, teacher: StagedModel | None
) -> SegmentationMethod:
    """The recipe's method with its student, whose weights come from the seed.

    Args:
        recipe: The run.
        data: Its images.
        teacher: None for a method without one.
    """
    seed = seed_of_part(recipe.seed, 0)
    student = build_model(recipe.student, data, recipe.data.normalize, seed)
    pair = Pair.measured(
        student,
        teacher,
        lambda model, _: _measured(model, data),
        torch.zeros(0, dtype=torch.int64),
        recipe.train.batch_size,
    )
    torch.manual_seed(seed_of_part(recipe.seed, 1))
    kind = METHODS[RECIPES.short(recipe.method.name)]
    return kind(pair, **recipe.method.options)


def _measured(model: StagedModel, data: SegmentationData) -> ModelSpec:
    return describe(model, data.full.images[:2].to(model.mean.device))


def build_trainer(
    recipe: SegmentationRecipe,
    data: SegmentationData,
    outputs: TeacherOutputs,
    device: torch.device,
    teacher: StagedModel | None,
) -> tuple[Trainer, SegmentationLoaders]:
    """The trainer of a recipe's schedule, and the loaders of what its method learns from.

    Args:
        recipe: The run.
        data: Its images.
        outputs: Of the frozen teacher.
        device: That trains.
        teacher: The model of the teacher, trained or not: the method measures its stages.
    """
    method = build_method(recipe, data, teacher).to(device)
    method.student.to_device(device)
    supervision: Supervision = method.supervision
    own = recipe.data
    loaders = SegmentationLoaders(data, device, supervision, own.weak_ratio, own.augmentation)
    trainer = build_task_trainer(recipe, method, outputs, loaders.train)
    return trainer, loaders


def rehearse(recipe: SegmentationRecipe, data: SegmentationData) -> None:
    """Builds the method and the optimizer, so that what does not fit is refused before the run.

    Raises:
        InputError: Something does not fit.
    """
    teacher = None
    if needs_teacher(recipe):
        assert recipe.teacher is not None, "the recipe is checked"
        teacher = build_model(recipe.teacher, data, recipe.data.normalize, 0)
    build_trainer(recipe, data, TeacherOutputs(None), torch.device("cpu"), teacher)


def build_run(
    recipe: SegmentationRecipe,
    data: SegmentationData,
    outputs: TeacherOutputs,
    directory: RunDirectory,
    device: torch.device,
) -> TrainingRun:
    """A training run that can begin.

    Args:
        recipe: The run.
        data: Its images.
        outputs: Of a teacher on the device.
        directory: Records the run.
        device: That trains.
    """
    model = outputs.teacher.model if outputs.teacher is not None else None
    trainer, loaders = build_trainer(recipe, data, outputs, device, model)
    torch.manual_seed(seed_of_part(recipe.seed, 2))
    return TrainingRun(recipe, loaders, trainer, directory, SEGMENTATION)


def teacher_recipe(recipe: SegmentationRecipe, folder: Path) -> SegmentationRecipe:
    """The run that trains a recipe's teacher, by masks."""
    values = {key: getattr(recipe.teacher, key) for key in SegmentationModelSettings.model_fields}
    own = RECIPES.of_teacher(recipe, SegmentationModelSettings(**values), folder)
    # It has the split of the run, and its own seed: it is no copy of a student of its width.
    return own.changed(data=recipe.split_data, seed=seed_of_part(recipe.seed, 3))


def trained_teacher(
    recipe: SegmentationRecipe,
    data: SegmentationData,
    folder: Path,
    device: torch.device,
    resume: bool,
) -> FrozenTeacher:
    """Trains the teacher in ``folder``, unless it was trained there before, and freezes it.

    Args:
        recipe: The run.
        data: Its images.
        folder: The run directory of the teacher's own training.
        device: That trains.
        resume: Whether an interrupted training goes on.

    Raises:
        InputError: The folder holds another teacher, or is in use.
        Stopped: A signal asked for a stop; the state is saved.
    """
    assert recipe.teacher is not None, "the recipe is checked"
    train_in_folder(
        teacher_recipe(recipe, folder),
        data.fingerprint(),
        device,
        lambda own, directory: build_run(own, data, TeacherOutputs(None), directory, device),
        resume,
        recipe.teacher.epochs is None,
    )
    return freeze(recipe, data, folder / LAST, device)


def read_teacher(
    recipe: SegmentationRecipe, data: SegmentationData, device: torch.device
) -> FrozenTeacher:
    """The frozen teacher of a checkpoint.

    Raises:
        InputError: As for `freeze`.
    """
    assert recipe.teacher is not None, "the recipe is checked"
    assert recipe.teacher.checkpoint is not None, "it is given"
    warn_of_other_split(recipe.teacher.checkpoint, recipe, data.test_is_held_out)
    return freeze(recipe, data, recipe.teacher.checkpoint, device)


def freeze(
    recipe: SegmentationRecipe, data: SegmentationData, weights: Path, device: torch.device
) -> FrozenTeacher:
    """The frozen teacher with the weights of a file, evaluated on the test split.

    Raises:
        InputError: The file cannot be read, does not fit the settings of the teacher, was trained
            for other classes, or has weights whose logits are not finite.
    """
    assert recipe.teacher is not None, "the recipe has one"
    model = build_model(recipe.teacher, data, recipe.data.normalize, 0)
    known = metadata_if_any(weights, read_student_metadata)
    if known is not None:
        if known.classes != data.classes:
            raise InputError(
                f"teacher.checkpoint {weights} has the classes {list(known.classes)}, and the data "
                f"has {list(data.classes)}; give a teacher of these classes"
            )
        model = known.model_of(model.module)
    load_weights(model.module, read_weights(weights), f"teacher.checkpoint {weights}")
    teacher = FrozenTeacher(model.to_device(device))
    loaders = SegmentationLoaders(data, device, "masks", 0)
    found = SEGMENTATION.evaluate(
        teacher, lambda images: {"teacher": teacher(images).logits}, loaders.test
    )["teacher"]
    if not found.finite:
        raise InputError(f"the teacher in {weights} has logits that are not finite; give another")
    teacher.test_predictions = found.predictions
    log.info(
        "the teacher %s has a test Dice of %.2f %% (%d images)",
        *(recipe.teacher.name, found.accuracy, len(data.test)),
    )
    return teacher
