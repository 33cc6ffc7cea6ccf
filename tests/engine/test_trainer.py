"""The seconds of an epoch, with a clock that a test sets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dskd.engine import trainer as module
from tests.trainers import trainer


class Clock:
    """Counts seconds. Every look at it takes a tenth of one."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        self.now += 0.1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_the_seconds_of_an_epoch_are_those_of_its_steps(clock: Clock) -> None:
    made = trainer("ce")
    made.seconds = 0.0
    for _ in made.train_epoch():
        clock.now += 50  # an evaluation or a checkpoint between two steps
    assert made.steps == 7
    assert made.seconds == pytest.approx(0.7)
    made.end_epoch()
    assert made.seconds == 0


def test_the_preparation_counts_and_what_was_before_stays(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer("ce")
    assert made.seconds == pytest.approx(0.1)

    def prepare(_: object) -> None:
        assert made.method.training
        clock.now += 3

    monkeypatch.setattr(made.method, "prepare", prepare)
    checked = list[float]()
    made.method.eval()
    made.prepare(lambda: checked.append(clock.now))
    assert made.seconds == pytest.approx(0.1 + 3.1)
    assert len(checked) == 1
