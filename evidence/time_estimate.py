"""Estimates how long a study takes on this CPU, from a few steps."""

from __future__ import annotations

import statistics
import time
from itertools import islice, pairwise

import torch

from dskd.compare.variants import method_variants
from dskd.config.schema import Recipe
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_method, build_teacher_outputs, build_trainer
from dskd.engine.build_data import load_data
from dskd.engine.build_model import build_model
from dskd.engine.prepare import teacher_recipe
from dskd.engine.train_teacher import freeze
from dskd.engine.trainer import Trainer
from dskd.teacher.frozen import FrozenTeacher

STEPS = 3
"""Timed steps. One step before them is not timed."""


def training_seconds(recipe: Recipe, labels: list[str], seeds: int) -> float:
    """Estimates the seconds of all training steps, of the teacher and of every student.

    Evaluation is not included. The students of a seed share the outputs of their teacher.

    Args:
        recipe: A recipe with the name and the epochs of the teacher.
        labels: The students.
        seeds: Number of seeds of each student.
    """
    data = load_data(recipe.data)
    images = DataLoaders(data, torch.device("cpu"))
    assert recipe.teacher is not None, "a study has a teacher"
    untrained = build_model(recipe.teacher, data, 0)
    teacher = freeze(untrained, images, recipe.teacher.fuse_batchnorm, recipe.train.precision)
    own = teacher_recipe(recipe)
    first = _trainer(own, images, None)
    total = _step(first)[0] * first.steps * own.train.epochs
    students, teacher_seconds = 0.0, 0.0
    for variant in method_variants(labels, recipe, "equal"):
        trainer = _trainer(recipe.changed(method=variant.method), images, teacher)
        step, forward = _step(trainer)
        students += step - forward
        teacher_seconds = max(teacher_seconds, forward)
    return total + (students + teacher_seconds) * first.steps * recipe.train.epochs * seeds


def _trainer(recipe: Recipe, images: DataLoaders, teacher: FrozenTeacher | None) -> Trainer:
    student = build_model(recipe.student, images.data, 0)
    method = build_method(recipe, images.data, student, teacher)
    method.student.to_device(images.train.device)
    teacher_outputs = build_teacher_outputs(recipe, images.train, teacher, method.needs)
    return build_trainer(recipe, method, teacher_outputs, images.train)


def _step(trainer: Trainer) -> tuple[float, float]:
    """Median seconds of a step, and the seconds of the teacher's forward pass in it."""
    steps = trainer.train_epoch()
    next(steps)
    start = trainer.teacher_outputs.watch.seconds
    ends = [time.perf_counter(), *(time.perf_counter() for _ in islice(steps, STEPS))]
    times = [end - start for start, end in pairwise(ends)]
    teacher = trainer.teacher_outputs.watch.seconds - start
    return (statistics.median(times), teacher / len(times)) if times else (trainer.seconds, teacher)
