"""The trainer of a run of another task than images."""

from __future__ import annotations

from dskd.data.loader import Loader
from dskd.engine.lr_schedule import schedule_of
from dskd.engine.optimizer import make_optimizer
from dskd.engine.tasks.settings import TaskRecipe
from dskd.engine.trainer import Trainer
from dskd.methods.base import Method
from dskd.teacher.outputs import TeacherOutputs


def build_trainer(
    recipe: TaskRecipe, method: Method, outputs: TeacherOutputs, loader: Loader
) -> Trainer:
    """The trainer of a recipe's schedule.

    Args:
        recipe: The run.
        method: On the device that trains.
        outputs: Of a teacher on this device.
        loader: Of the training split on this device.
    """
    settings = recipe.train
    optimizer = make_optimizer(
        method,
        settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        decay_norms_and_biases=settings.decay_norms_and_biases,
    )
    return Trainer(
        method,
        outputs,
        loader,
        optimizer,
        schedule_of(settings),
        seed=recipe.seed,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        padding=0,
        flip=False,
        precision=settings.precision,
        clip_norm=settings.clip_norm,
    )
