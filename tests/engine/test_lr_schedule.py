"""Learning rates against the usual rules of the literature."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd.config import recipe
from dskd.engine.lr_schedule import learning_rate
from dskd.errors import InputError, on_command_line


@pytest.mark.parametrize("epochs", [240, 120, 80, 40, 16, 8])
def test_milestones_scale_with_the_epochs(epochs: int) -> None:
    rates = [learning_rate(epoch, epochs, 1.0) for epoch in range(epochs)]
    for share, power in ((0.625, 1), (0.75, 2), (0.875, 3)):
        at = round(share * epochs)
        assert rates[at] == pytest.approx(0.1**power)
        assert rates[at - 1] > rates[at] * 5


def test_cosine_falls_from_the_rate_to_zero() -> None:
    assert learning_rate(0, 10, 0.4, "cosine") == 0.4
    assert learning_rate(5, 10, 0.4, "cosine") == pytest.approx(0.2)
    assert learning_rate(10, 10, 0.4, "cosine") == pytest.approx(0, abs=1e-12)


def test_cosine_falls_to_the_lowest_rate() -> None:
    rates = [learning_rate(e, 10, 0.4, "cosine", min_lr=0.1) for e in (0, 5, 10, 11)]
    assert rates == pytest.approx([0.4, 0.25, 0.1, 0.1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.min_lr=0.01", "train.schedule=step"], "end of train.schedule=cosine"),
        (["train.min_lr=0.1", "train.schedule=cosine", "train.lr=0.1"], "not below the learning"),
        (["train.min_lr=0.1", "train.schedule=cosine", "teacher.lr=0.05"], "not below the learn"),
    ],
)
def test_a_lowest_rate_that_cannot_be_is_refused(changes: list[str], words: str) -> None:
    with on_command_line(), pytest.raises(InputError, match=words):
        recipe.load("digits", changes)


@pytest.mark.parametrize("change", ["train.milestones=[0.5]", "train.gamma=0.2"])
def test_settings_of_steps_are_refused_with_cosine(change: str) -> None:
    key = change.partition("=")[0]
    with on_command_line(), pytest.raises(InputError, match=f"{key} is of train.schedule=step"):
        recipe.load("digits", ["train.schedule=cosine", change])
    assert recipe.load("digits", ["train.schedule=step", change]).train.schedule == "step"
    plain = recipe.load("digits", ["train.schedule=cosine"])
    assert recipe.resolve(plain.plain(), plain.out or Path()).train == plain.train, "as in a file"


def test_warmup_rises_linearly_then_hands_over() -> None:
    rates = [learning_rate(e, 10, 1.0, "cosine", warmup=2.0) for e in (0, 0.5, 1, 2, 6)]
    assert rates == pytest.approx([0, 0.25, 0.5, 1.0, 0.5])


@given(st.floats(0, 30), st.sampled_from(["step", "cosine"]), st.floats(0, 5))
def test_rates_are_never_negative_nor_above_the_base(
    epoch: float, schedule: str, warmup: float
) -> None:
    rate = learning_rate(epoch, 30, 0.1, schedule, warmup=warmup)  # type: ignore[arg-type]
    assert 0 <= rate <= 0.1 + 1e-12
    assert math.isfinite(rate)
