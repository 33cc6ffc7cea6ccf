"""Timing in turns: each of the compared runners takes one step in every round.

Other work on the machine then slows all of them equally, and every round gives a ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from machine import multiply_adds

from dskd.engine.trainer import Trainer

MIN_ROUNDS = 3
"""Minimum number of rounds."""


class Steps(Protocol):
    """Something that takes steps.

    Attributes:
        untimed: Untimed steps at the beginning of each turn. Without them, a step that workers of a
            DataLoader prepared during other turns would be too fast.
        pause: Seconds to wait after a turn, in which workers of a DataLoader finish.
    """

    untimed: int
    pause: float

    def step(self) -> float:
        """Takes a step, and returns the seconds of the teacher in it."""
        ...


class CountedSteps(Steps, Protocol):
    """Steps whose multiply-adds can be counted."""

    def work(self) -> int:
        """Takes a step, and returns its multiply-adds."""
        ...


class TrainerSteps:
    """The steps of a trainer, which repeats the same epoch.

    Args:
        trainer: The trainer.
    """

    untimed = 0
    pause = 0.0

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._running = trainer.train_epoch()

    def step(self) -> float:
        """See `Steps.step`."""
        self.trainer.teacher_outputs.watch.set(0.0)
        for _ in self._running:
            return self.trainer.teacher_outputs.watch.seconds
        self.trainer.step = 0
        self._running = self.trainer.train_epoch()
        return self.step()

    def work(self) -> int:
        """See `CountedSteps.work`."""
        return multiply_adds(self.step)


class StepTime(NamedTuple):
    """Seconds of a step, and the seconds of the teacher in it."""

    seconds: float
    teacher: float


@dataclass
class Times:
    """The measured times of a runner.

    Attributes:
        first: Seconds of the very first step, with warm-up and compilation.
        steps: The steps that count.
    """

    first: float
    steps: list[StepTime] = field(default_factory=list)


def interleave(
    runners: Mapping[str, Steps],
    rounds: int,
    *,
    warmup: int = 1,
    until: float = float("inf"),
    on_round: Callable[[int], None] = lambda _: None,
) -> dict[str, Times]:
    """Times every runner, a step in each round.

    Args:
        runners: The runners, by name.
        rounds: Rounds that count.
        warmup: Rounds that do not count, after the first step of each runner.
        until: When to stop, by `time.monotonic`, after the minimum number of rounds.
        on_round: Called after each round, with the number of finished rounds.
    """
    times = {name: Times(_timed(runner, 0).seconds) for name, runner in runners.items()}
    for _ in range(warmup):
        for runner in runners.values():
            _timed(runner, 0)
    for done in range(rounds):
        if done >= MIN_ROUNDS and time.monotonic() > until:
            break
        for name, runner in runners.items():
            times[name].steps.append(_timed(runner, runner.untimed))
        on_round(done + 1)
    return times


def _timed(runner: Steps, untimed: int) -> StepTime:
    for _ in range(untimed):
        runner.step()
    start = time.perf_counter()
    teacher = runner.step()
    seconds = time.perf_counter() - start
    time.sleep(runner.pause)
    return StepTime(seconds, teacher)
