"""Images of noise and untrained teachers: the time of a step does not depend on either."""

from __future__ import annotations

import torch

from dskd.config.schema import Recipe
from dskd.data import Dataset, Split
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_method, build_run, build_teacher_outputs, build_trainer
from dskd.engine.build_model import build_model
from dskd.engine.prepare import prepare
from dskd.engine.train_teacher import freeze, given_teacher
from dskd.engine.trainer import Trainer
from dskd.engine.training_run import TrainingRun
from dskd.engine.user_objects import UserObjects
from dskd.models.zoo import build
from dskd.runtime import device
from dskd.runtime.compile import compile_in_place
from dskd.storage.run_directory import RunDirectory
from dskd.teacher.frozen import FrozenTeacher

CPU = torch.device("cpu")


def noise_data(
    samples: int, *, classes: int = 100, size: int = 32, test_samples: int | None = None
) -> Dataset:
    """Images of noise, by default in the shape of CIFAR-100.

    Args:
        samples: Number of training images.
        classes: Number of classes.
        size: Side of the images in pixels.
        test_samples: Number of test images; None for one of each class.
    """
    draw = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(0, 256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
        return Split(images, torch.arange(count) % classes)

    names = tuple(map(str, range(classes)))
    train, test = split(samples), split(classes if test_samples is None else test_samples)
    return Dataset("noise", train, test, names, (0.5,) * 3, (0.25,) * 3)


def noise_trainer(recipe: Recipe, data: Dataset) -> Trainer:
    """The trainer of a recipe on the CPU, with an untrained teacher.

    Args:
        recipe: The recipe.
        data: The images.
    """
    device.set_up(CPU)
    images = DataLoaders(data, CPU)
    teacher = untrained_teacher(recipe, images)
    student = build_model(recipe.student, data, seed=0)
    method = build_method(recipe, data, student, teacher)
    method.student.to_device(CPU)
    if recipe.train.compile:
        compile_in_place(method)
    teacher_outputs = build_teacher_outputs(recipe, images.train, teacher, method.needs)
    teacher_outputs.open()
    return build_trainer(recipe, method, teacher_outputs, images.train)


def untrained_teacher(recipe: Recipe, images: DataLoaders) -> FrozenTeacher | None:
    """The teacher of a recipe, untrained and frozen; None if the recipe has none.

    Args:
        recipe: The recipe.
        images: The images, on their device.
    """
    if recipe.teacher is None:
        return None
    torch.manual_seed(1)
    channels, classes = images.data.shape[0], len(images.data.classes)
    untrained = build(recipe.teacher.name, num_classes=classes, in_channels=channels)
    model = build_model(recipe.teacher, images.data, 0, untrained)
    return freeze(model, images, recipe.teacher.fuse_batchnorm, recipe.train.precision)


def begin_noise_run(recipe: Recipe, images: DataLoaders) -> TrainingRun:
    """A run that has begun, as `dskd.engine.run.distill` begins it, with an untrained teacher.

    A run that was stopped in the same folder is resumed.

    Args:
        recipe: The recipe, with a folder and a teacher.
        images: The images, on the device that trains.
    """
    assert recipe.out is not None
    assert recipe.teacher is not None
    torch.manual_seed(1)
    untrained = build(recipe.teacher.name, num_classes=len(images.data.classes))
    objects = UserObjects(teacher=untrained)
    prepared = prepare(recipe, images.data, objects, images.train.device)
    directory = RunDirectory(recipe.out)
    resume = directory.begun
    directory.start(recipe.plain(), {})
    teacher = given_teacher(prepared, images, [])
    outputs = build_teacher_outputs(recipe, images.train, teacher, prepared.needs)
    outputs.open()
    run = build_run(recipe, prepared.student, images, outputs, directory)
    run.begin(resume)
    return run
