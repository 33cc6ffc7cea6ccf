"""From a recipe's settings to the method, teacher outputs and trainer of a run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dskd import methods
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.epoch_plan import largest_batch
from dskd.data.joint_plan import largest_joint_batch
from dskd.data.loader import NO_LABEL, Batch, DataLoaders, Loader
from dskd.engine.average import StudentAverage
from dskd.engine.build_model import measure_model
from dskd.engine.image_task import IMAGES
from dskd.engine.lr_schedule import schedule_of
from dskd.engine.mixing import build_mixing
from dskd.engine.optimizer import make_optimizer
from dskd.engine.other_classes import feature_settings
from dskd.engine.seeds import seed_of_part
from dskd.engine.sync_batchnorm import synchronized
from dskd.engine.targets import NoTargets, soft_targets
from dskd.engine.trainer import Trainer
from dskd.engine.training_run import TrainingRun
from dskd.engine.unlabelled import training_loader
from dskd.methods.base import Method
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.int8_rounding import Int8Rounding
from dskd.models.staged_model import StagedModel
from dskd.runtime import distributed
from dskd.runtime.compile import compile_in_place
from dskd.storage.run_directory import RunDirectory
from dskd.teacher.cache import CachedOutputs, views_of_each
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs


def build_method(
    recipe: Recipe, data: Dataset, student: StagedModel, teacher: FrozenTeacher | None
) -> Method:
    """The recipe's method for these models, on their device."""
    pair = Pair.measured(
        student,
        teacher.model if teacher is not None else None,
        lambda model, what: measure_model(model, data, what),
        data.train.labels.clamp_min(0) if data.without_labels else data.train.labels,
        _largest_batch(recipe, data),
    )
    name, options = recipe.method.name, recipe.method.options
    if teacher is not None and teacher.model.other_classes is not None:
        options = feature_settings(name, options, teacher.model, len(data.classes))
    return methods.find(name)(pair, **options)


def method_on(
    device: torch.device,
    recipe: Recipe,
    data: Dataset,
    student: StagedModel,
    teacher: FrozenTeacher | None,
) -> Method:
    """The recipe's method on the device that trains, with its 8-bit rounding if it has one."""
    method = build_method(recipe, data, student, teacher).to(device)
    method.student.to_device(device)
    if recipe.train.int8_rounding:
        method.student.int8 = Int8Rounding(method.student.module).to(device)
    return method


def _largest_batch(recipe: Recipe, data: Dataset) -> int:
    """Most samples that one process can have in a forward pass."""
    size, world = recipe.train.batch_size, distributed.world_size()
    if data.unlabelled is None:
        return largest_batch(size, world)
    return largest_joint_batch(size, recipe.data.unlabelled_share, world)


def build_teacher_outputs(
    recipe: Recipe, loader: Loader, teacher: FrozenTeacher | None, needs: TeacherNeeds
) -> TeacherOutputs:
    """The teacher's outputs, from a cache if the recipe says so; the cache is not open yet.

    A cache is filled by the uncompiled teacher, so that its content depends on the teacher alone.

    Args:
        recipe: The run.
        loader: Of all images that the teacher sees, on its device.
        teacher: The frozen teacher; None for a method that needs none.
        needs: Which outputs a cache holds.
    """
    settings = recipe.teacher
    if teacher is None or settings is None or settings.cache == "none" or not needs:
        return TeacherOutputs(teacher, compile=recipe.train.compile)
    return CachedOutputs(
        teacher,
        loader,
        needs,
        kind=settings.cache,
        views=settings.views,
        padding=recipe.data.crop_padding,
        flip=recipe.data.flip,
        precision=recipe.train.precision,
        facts={
            "name": settings.name,
            "options": settings.options,
            "fuse_batchnorm": settings.fuse_batchnorm,
        },
        folder=settings.cache_dir,
    )


def build_trainer(
    recipe: Recipe, method: Method, teacher_outputs: TeacherOutputs, loader: Loader
) -> Trainer:
    """The trainer of a recipe's schedule.

    Args:
        recipe: Its ``train``, ``data``, ``seed`` and ``teacher.cache`` are read.
        method: On its device.
        teacher_outputs: Of a teacher on the same device.
        loader: Of the training split, on the same device.
    """
    settings = recipe.train
    optimizer = make_optimizer(
        method,
        settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        dot_delta=settings.dot_delta,
        decay_norms_and_biases=settings.decay_norms_and_biases,
    )
    return Trainer(
        method,
        teacher_outputs,
        loader,
        optimizer,
        schedule_of(settings),
        seed=recipe.seed,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        padding=recipe.data.crop_padding,
        flip=recipe.data.flip,
        precision=settings.precision,
        views_of_each=_views_of_each(recipe, loader),
        augmentation=recipe.data.augmentation,
        accumulate=settings.accumulate,
        clip_norm=settings.clip_norm,
        average=StudentAverage(method, settings.ema) if settings.ema is not None else None,
        targets=_targets(recipe, method.classes, loader.labels),
    )


def _targets(recipe: Recipe, classes: int, labels: torch.Tensor) -> Callable[[Batch], Batch]:
    """Mixes batches and gives them soft targets, as the recipe says."""
    soften: Callable[[Batch], Batch]
    if bool((labels == NO_LABEL).all()):
        soften = NoTargets(classes)
    else:
        soften = soft_targets(recipe.train, labels, classes)
    mix = build_mixing(recipe.train, recipe.seed, classes)
    return soften if mix is None else lambda batch: soften(mix(batch))


def build_run(
    recipe: Recipe,
    student: StagedModel,
    data: DataLoaders,
    teacher_outputs: TeacherOutputs,
    directory: RunDirectory,
) -> TrainingRun:
    """A training run that can begin.

    What the method adds to the student is drawn from a random stream of its own, so that every
    method starts from the same student at the same seed.

    Args:
        recipe: The run.
        student: Is trained in place.
        data: Loaders on the device that trains.
        teacher_outputs: Of a teacher on the same device.
        directory: Records the run.
    """
    device = data.train.device
    torch.manual_seed(seed_of_part(recipe.seed, 1))
    method = method_on(device, recipe, data.data, student, teacher_outputs.teacher)
    if recipe.train.sync_batchnorm:
        method = synchronized(method)
    if recipe.train.compile:
        method.student.keep_hooks()
        compile_in_place(method)
    trainer = build_trainer(recipe, method, teacher_outputs, training_loader(recipe, data))
    torch.manual_seed(seed_of_part(recipe.seed, 2 + distributed.rank()))
    return TrainingRun(recipe, data, trainer, directory, IMAGES)


def _views_of_each(recipe: Recipe, loader: Loader) -> torch.Tensor | None:
    """The views that each image is limited to, the same for all methods; None for all views."""
    if recipe.teacher is None or recipe.teacher.cache == "none":
        return None
    padding, flip = recipe.data.crop_padding, recipe.data.flip
    return views_of_each(recipe.teacher.cache, loader, recipe.teacher.views, padding, flip)
