"""From a recipe's settings to the objects of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dskd import methods
from dskd.config.schema import (
    AUGMENTATIONS,
    DataSettings,
    ModelSettings,
    Recipe,
    TeacherSettings,
)
from dskd.data import Dataset, load_dataset, take_part
from dskd.data.epoch_plan import draw_views, largest_batch
from dskd.data.loader import Batch, DataLoaders, Loader
from dskd.data.pixels import PixelForm
from dskd.data.torch_dataset import TorchSplits
from dskd.engine.average import StudentAverage
from dskd.engine.load_checkpoint import assembled, file_statistics, load_file, weights_file
from dskd.engine.lr_schedule import schedule_of
from dskd.engine.mixing import build_mixing
from dskd.engine.optimizer import make_optimizer
from dskd.engine.targets import soft_targets
from dskd.engine.trainer import Trainer
from dskd.engine.training_run import TrainingRun
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.default_stages import default_stages
from dskd.models.factory import load_model, pretrained_statistics
from dskd.models.plain_copy import plain_copy, unwrap
from dskd.models.spec import ModelSpec, describe
from dskd.models.staged_model import StagedModel
from dskd.runtime import distributed
from dskd.runtime.compile import compile_in_place
from dskd.storage.file_facts import read_facts
from dskd.storage.run_directory import RunDirectory
from dskd.teacher.cache import CachedOutputs, cached_views
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs

PROBE = 16
"""Images of the forward pass that measures the shapes of a model's outputs."""


OF_IMAGES_IN_MEMORY = {
    "name",
    "classes",
    "fraction",
    "val_fraction",
    "test_fraction",
    "interpolation",
} | {*AUGMENTATIONS}
"""The keys of ``data`` that apply to images given in Python."""
OF_SAMPLES = {"size", "channels", "value_range", "crop_pct"}
"""The keys that apply to torch's data sets, too."""


@dataclass(frozen=True)
class UserObjects:
    """Objects that a Python caller gives in place of names.

    Attributes:
        data: In place of ``data.name``.
        student: In place of ``student.name``.
        teacher: In place of ``teacher.name``; it counts as trained.
        allow_code: Whether ``package.module:function`` names may run.
    """

    data: Dataset | TorchSplits | None = None
    student: nn.Module | None = None
    teacher: nn.Module | None = None
    allow_code: bool = False


def name_of(given: object) -> str:
    """The name in a recipe of an object that has no name: ``<ResNet>``, also if it is wrapped."""
    plain = unwrap(given) if isinstance(given, nn.Module) else given
    return f"<{type(plain).__name__}>"


def load_data(settings: DataSettings, given: Dataset | TorchSplits | None = None) -> Dataset:
    """The data set that a recipe names, or the one given in place of it.

    Raises:
        InputError: It cannot be read, or a setting does not apply to images in memory.
    """
    if given is not None:
        of_files = DataSettings.model_fields.keys() - OF_IMAGES_IN_MEMORY
        if isinstance(given, TorchSplits):
            of_files -= OF_SAMPLES
        for key in sorted(of_files):
            if not settings.is_default(key):
                raise InputError(f"data.{key} does not apply to images given in Python; drop it")
        if isinstance(given, TorchSplits):
            given = given.read(
                size=settings.size,
                channels=settings.channels,
                form=PixelForm(
                    value_range=settings.value_range,
                    crop_pct=settings.crop_pct,
                    interpolation=settings.interpolation,
                ),
                val_fraction=settings.val_fraction,
            )
        fractions = settings.fraction, settings.val_fraction or 0.0, settings.test_fraction
        return take_part(given, settings.classes, *fractions)
    if settings.name.startswith("<"):
        raise InputError(
            f"this run's images were given in Python as {settings.name}; give them again, as "
            "in dskd.evaluate(run, data=dataset)"
        )
    chosen = settings.model_dump(exclude={"name", *AUGMENTATIONS})
    return load_dataset(settings.name, **chosen)


def build_model(
    settings: ModelSettings,
    data: Dataset,
    seed: int,
    given: nn.Module | None = None,
    allow_code: bool = False,
) -> StagedModel:
    """A model with fresh weights drawn from ``seed``, or a copy of the one given.

    It gets the weights of its checkpoint, if the settings name one. A model of timm or torchvision
    gets default stages, if the settings name none.

    The copy is trained, moved and frozen; the caller's own module stays as it is. Wrappers, such as
    torch.compile and DataParallel, are left out of the copy.
    """
    channels, height, _ = data.shape
    if given is not None:
        if settings.options:
            raise InputError("options do not apply to a module given in Python; drop them")
        if settings.pretrained:
            raise InputError("pretrained does not apply to a module given in Python; drop it")
        module = plain_copy(given)
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
            pretrained=settings.pretrained is True,
        )
    default_mean, default_std = pretrained_statistics(module, channels) or (data.mean, data.std)
    facts = read_facts(weights_file(settings))
    if facts is not None and isinstance(settings, TeacherSettings) and not settings.pretrained:
        module = assembled(module, facts)
    stored_mean, stored_std = file_statistics(settings, facts)
    mean = stored_mean if stored_mean is not None else default_mean
    std = stored_std if stored_std is not None else default_std
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"mean and std of {settings.name} have {len(mean)} and {len(std)} channels, the "
            f"images {channels}; give {channels} of each"
        )
    stages: Sequence[str] | None = settings.stages
    if stages is None and given is None:
        stages = default_stages(settings.name, module, data.shape)
    model = StagedModel(module, stages, mean=mean, std=std)
    if weights_file(settings) is not None:
        load_file(model, settings, facts, data)
    return model


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


def build_method(
    recipe: Recipe, data: Dataset, student: StagedModel, teacher: FrozenTeacher | None
) -> Method:
    """The recipe's method for these models, on their device."""
    classifier = teacher.model.linear_classifier if teacher is not None else None
    pair = Pair(
        student,
        measure_model(student, data, "student"),
        measure_model(teacher.model, data, "teacher") if teacher is not None else None,
        copy.deepcopy(classifier),
        data.train.labels,
        largest_batch(recipe.train.batch_size, distributed.world_size()),
    )
    return methods.find(recipe.method.name)(pair, **recipe.method.options)


def build_teacher_outputs(
    recipe: Recipe, loader: Loader, teacher: FrozenTeacher | None, needs: TeacherNeeds
) -> TeacherOutputs:
    """The teacher's outputs, from a cache if the recipe says so; the cache is not open yet.

    A cache is filled by the uncompiled teacher, so that its content depends on the teacher alone.

    Args:
        recipe: The run.
        loader: Of the training split, on the teacher's device.
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
        views_of_each=_views_of_each(recipe, len(loader)),
        augmentation=recipe.data.augmentation,
        accumulate=settings.accumulate,
        clip_norm=settings.clip_norm,
        average=StudentAverage(method, settings.ema) if settings.ema is not None else None,
        targets=_targets(recipe, method.classes, loader.labels),
    )


def _targets(recipe: Recipe, classes: int, labels: torch.Tensor) -> Callable[[Batch], Batch]:
    """Mixes batches and gives them soft targets, as the recipe says."""
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
    torch.manual_seed(_stream(recipe.seed, 1))
    method = build_method(recipe, data.data, student, teacher_outputs.teacher).to(device)
    method.student.to_device(device)
    if recipe.train.sync_batchnorm:
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)  # type: ignore[no-untyped-call]
    if recipe.train.compile:
        compile_in_place(method)
    trainer = build_trainer(recipe, method, teacher_outputs, data.train)
    torch.manual_seed(_stream(recipe.seed, 2 + distributed.rank()))
    return TrainingRun(recipe, data, trainer, directory)


def _stream(seed: int, part: int) -> int:
    """A seed for one part of a run."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])


def _views_of_each(recipe: Recipe, samples: int) -> torch.Tensor | None:
    """The views that each image is limited to, the same for all methods; None for all views."""
    if recipe.teacher is None or recipe.teacher.cache != "features":
        return None
    padding, flip = recipe.data.crop_padding, recipe.data.flip
    views = cached_views("features", recipe.teacher.views, padding, flip)
    return draw_views(samples, padding, flip, views)
