"""How long a study takes on this CPU, told from a few steps of it."""

from __future__ import annotations

import statistics
import time
from itertools import islice, pairwise
from pathlib import Path

import torch

from dskd.compare.variants import contenders
from dskd.config.recipe import Recipe
from dskd.data.loader import ResidentData
from dskd.engine.build import Given, build_model, load_data
from dskd.engine.run import make_answers, make_method, make_teacher, make_trainer, teacher_recipe
from dskd.engine.trainer import Trainer
from dskd.teacher.frozen import Teacher

STEPS = 3
"""That are timed, after one that is not."""


def seconds_of(recipe: Recipe, labels: list[str], seeds: int) -> float:
    """Of all training steps: the teacher's own, and of every student at every seed.

    Judging comes on top. Students of a seed share their teacher's answers.

    Args:
        recipe: With the teacher's name and epochs.
        labels: The students.
        seeds: Of each.
    """
    data = load_data(recipe.data)
    pictures = ResidentData(data, torch.device("cpu"))
    assert recipe.teacher is not None, "a study has a teacher"
    untrained = build_model(recipe.teacher, data, 0).module
    teacher = make_teacher(recipe, pictures, Given(teacher=untrained), Path(), resume=False)
    own = teacher_recipe(recipe, Path())
    first = _trainer(own, pictures, None)
    total = _step(first)[0] * first.steps * own.train.epochs
    students, answer = 0.0, 0.0
    for contender in contenders(labels, recipe, "equal"):
        trainer = _trainer(recipe.changed(method=contender.method), pictures, teacher)
        step, asking = _step(trainer)
        students += step - asking
        answer = max(answer, asking)
    return total + (students + answer) * first.steps * recipe.train.epochs * seeds


def _trainer(recipe: Recipe, pictures: ResidentData, teacher: Teacher | None) -> Trainer:
    student = build_model(recipe.student, pictures.data, 0)
    method = make_method(recipe, pictures.data, student, teacher)
    method.student.place(pictures.train.device)
    answers = make_answers(recipe, pictures.train, teacher, method.needs)
    return make_trainer(recipe, method, answers, pictures.train)


def _step(trainer: Trainer) -> tuple[float, float]:
    """Seconds of a step, and the teacher's part of them."""
    steps = trainer.train_epoch()
    next(steps)
    asked = trainer.answers.watch.seconds
    ends = [time.perf_counter(), *(time.perf_counter() for _ in islice(steps, STEPS))]
    times = [end - start for start, end in pairwise(ends)]
    asked = trainer.answers.watch.seconds - asked
    return (statistics.median(times), asked / len(times)) if times else (trainer.seconds, asked)
