"""Timing by turns: whatever is compared takes one step each, again and again.

A machine that is slowed by something else then slows all alike, and every round gives a ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from machine import multiply_adds

from dskd.engine.trainer import Trainer

FEWEST = 3
"""Rounds that are taken in any case."""


class Steps(Protocol):
    """Something that takes steps.

    Attributes:
        lead: Steps before the one that is timed, in each turn. A step that others prepare while
            it waits for its turn (a DataLoader's workers) would be too cheap without.
        rest: Seconds to leave the machine alone after a turn, for what then goes on beside.
    """

    lead: int
    rest: float

    def step(self) -> float:
        """Takes a step; how many of its seconds were the teacher's."""
        ...


class CountedSteps(Steps, Protocol):
    """Steps whose multiply-adds can be counted."""

    def work(self) -> int:
        """Takes a step; its multiply-adds."""
        ...


class Training:
    """The steps of a trainer, the same epoch over and over."""

    lead = 0
    rest = 0.0

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


class Step(NamedTuple):
    """Seconds of a step, and the teacher's part of them."""

    seconds: float
    teacher: float


@dataclass
class Times:
    """What was measured of one.

    Attributes:
        first: Seconds of the very first step: warm-up, and compilation where a path compiles.
        steps: Those that count.
    """

    first: float
    steps: list[Step] = field(default_factory=list)


def take_turns(
    runners: Mapping[str, Steps],
    rounds: int,
    *,
    warmup: int = 1,
    until: float = float("inf"),
    told: Callable[[int], None] = lambda _: None,
) -> dict[str, Times]:
    """Times every runner, a step in each round.

    Args:
        runners: By name.
        rounds: That count.
        warmup: Rounds before them that do not count, after everyone's first step.
        until: By `time.monotonic`, when to stop, once a few rounds are there.
        told: Is told how many rounds are done.
    """
    times = {name: Times(_timed(runner, 0).seconds) for name, runner in runners.items()}
    for _ in range(warmup):
        for runner in runners.values():
            _timed(runner, 0)
    for done in range(rounds):
        if done >= FEWEST and time.monotonic() > until:
            break
        for name, runner in runners.items():
            times[name].steps.append(_timed(runner, runner.lead))
        told(done + 1)
    return times


def _timed(runner: Steps, lead: int) -> Step:
    for _ in range(lead):
        runner.step()
    start = time.perf_counter()
    teacher = runner.step()
    seconds = time.perf_counter() - start
    time.sleep(runner.rest)
    return Step(seconds, teacher)
