"""The learning rate, a pure function of progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from dskd.config.train_settings import TrainSettings
from dskd.settings import Schedule


def schedule_of(settings: TrainSettings) -> Callable[[float], float]:
    """From the epochs done, with a fraction, to the learning rate of a run.

    Example:
        >>> schedule_of(TrainSettings(epochs=10, lr=1.0, milestones=(0.5,)))(5.0)
        0.1
    """
    return partial(
        learning_rate,
        epochs=settings.epochs,
        lr=settings.lr,
        schedule=settings.schedule,
        milestones=settings.milestones,
        gamma=settings.gamma,
        warmup=settings.warmup,
        min_lr=settings.min_lr,
    )


def learning_rate(
    epoch: float,
    epochs: int,
    lr: float,
    schedule: Schedule = "step",
    *,
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875),
    gamma: float = 0.1,
    warmup: float = 0.0,
    min_lr: float = 0.0,
) -> float:
    """The learning rate at a point of the run.

    Args:
        epoch: Epochs done, with a fraction for the steps of the running one.
        epochs: Epochs of the whole run.
        lr: The base rate.
        schedule: ``step``: times ``gamma`` at every milestone passed; ``cosine``: down to
            ``min_lr``.
        milestones: Shares of the run, so that they scale with ``epochs``: the default is
            150, 180 and 210 of 240.
        gamma: Factor at a milestone.
        warmup: Epochs at the start in which the rate rises linearly from 0.
        min_lr: The rate at the end of ``cosine``.

    Example:
        >>> [round(learning_rate(e, 240, 0.05), 5) for e in (0, 149, 150, 180, 210)]
        [0.05, 0.05, 0.005, 0.0005, 5e-05]
    """
    if epoch < warmup:
        return lr * epoch / warmup
    if schedule == "cosine":
        done = min((epoch - warmup) / (epochs - warmup), 1.0)
        return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * done))
    # Milestones fall on whole epochs: rounding guards against 0.7 * 10 = 6.999...
    passed = sum(int(epoch) >= round(share * epochs) for share in milestones)
    return float(lr * gamma**passed)
