"""A finished run takes more epochs, if its learning rates allow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.config.train_settings import TrainSettings
from dskd.deploy.student import load_deployed
from dskd.engine import run
from dskd.engine.more_epochs import check_rates
from dskd.errors import InputError, Stopped, on_command_line
from dskd.storage.run_files import LAST
from tests.builders import stop_at

SMALL = [
    "data.fraction=0.1",
    "student.name=resnet8",
    "teacher.name=resnet8",
    "train.batch_size=32",
    "train.schedule=step",
    "train.milestones=[]",
]


def plan(out: Path, epochs: int, *overrides: str, method: str = "ce") -> Recipe:
    base = [*SMALL, f"train.epochs={epochs}", f"method={{name: {method}}}", f"out={out}"]
    return recipe.load("digits", [*base, *overrides])


def stopped_at(
    epoch: int, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, *, resume: bool = False
) -> None:
    """A run that a signal stops in an epoch, after its first step."""
    with monkeypatch.context() as patch:
        stop_at(patch, epoch, 0)
        with pytest.raises(Stopped):
            run.distill(recipe, resume=resume)


def epochs_of(out: Path) -> list[int]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def content(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and "lock" not in path.name
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run.distill(plan(out, 3))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_goes_on_ends_as_one_that_was_trained_at_once(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    out = tmp_path / "run"
    run.distill(plan(out, 1))
    if stopped:
        stopped_at(1, plan(out, 3), monkeypatch, resume=True)
        assert not (out / "result.json").exists()
        assert (out / LAST).is_file()  # of one epoch
        with pytest.raises(InputError, match="is not finished; to continue it"):
            load_deployed(out)
        assert load_deployed(out, "best").which == "best"
        assert yaml.safe_load((out / "recipe.yaml").read_text())["train"]["epochs"] == 3
    result = run.distill(plan(out, 3), resume=True)
    assert (out / LAST).read_bytes() == (whole / LAST).read_bytes()
    assert epochs_of(out) == [1, 2, 3]
    numbers = json.loads((out / "result.json").read_text())
    assert numbers["test_accuracy"] == result.test_accuracy
    with pytest.raises(InputError, match=r"finished run; .* go on with a larger train\.epochs"):
        run.distill(plan(out, 3), resume=True)


@pytest.mark.slow
def test_a_teacher_that_was_trained_first_stays_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dskd")
    out = tmp_path / "run"
    as_long = "teacher.epochs=null"
    run.distill(plan(out, 1, as_long, method="kd"))
    teacher = content(out / "teacher")
    run.distill(plan(out, 2, as_long, method="kd"), resume=True)
    assert epochs_of(out) == [1, 2]
    assert content(out / "teacher") == teacher
    (line,) = [one for one in caplog.messages if "stays as it was trained" in one]
    assert line.endswith('give teacher={..., "epochs": 1} with its recipe')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "epochs", "said"),
    [
        (
            ["train.schedule=cosine"],
            4,
            "another recipe: train.schedule is step there, cosine here",
        ),
        (["train.lr=0.01"], 4, "another recipe: train.lr is"),
        ([], 2, "another recipe: train.epochs is 3 there, 2 here"),
    ],
)
def test_only_the_epochs_may_change_and_only_upward(
    whole: Path, changes: list[str], epochs: int, said: str
) -> None:
    before = content(whole)
    with pytest.raises(InputError, match=said):
        run.distill(plan(whole, epochs, *changes), resume=True)
    assert content(whole) == before


@pytest.mark.slow
def test_a_schedule_that_scales_with_the_epochs_is_refused_with_the_way_on(tmp_path: Path) -> None:
    out, cosine = tmp_path / "run", "train.schedule=cosine"
    run.distill(plan(out, 2, cosine))
    before = content(out)
    with on_command_line(), pytest.raises(InputError) as refused:
        run.distill(plan(out, 4, cosine), resume=True)
    assert content(out) == before
    line = str(refused.value)
    assert "cannot go on to train.epochs=4: the schedule 'cosine' depends on the number" in line
    start = line.rpartition("with ")[2]
    assert start == f"student.checkpoint={out / LAST}"
    run.distill(plan(tmp_path / "new", 1, cosine, start))  # the message, followed


@pytest.mark.slow
def test_only_the_rates_of_epochs_that_were_trained_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first milestone of 8 epochs is after the fifth, which was not trained."""
    out, steps = tmp_path / "run", "train.milestones=[0.625]"
    stopped_at(0, plan(out, 8, steps), monkeypatch)
    run.distill(plan(out, 16, steps), resume=True)
    assert epochs_of(out) == [*range(1, 17)]


@pytest.mark.slow
def test_a_run_without_a_student_cannot_be_the_start_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, cosine = tmp_path / "run", "train.schedule=cosine"
    stopped_at(1, plan(out, 3, cosine), monkeypatch)
    with pytest.raises(InputError, match=r"train anew in another folder$"):
        run.distill(plan(out, 4, cosine), resume=True)


@pytest.mark.slow
def test_a_run_of_a_comparison_keeps_the_epochs_of_all(tmp_path: Path) -> None:
    out = tmp_path / "compared/ce/seed0"
    run.distill(plan(out, 1))
    (tmp_path / "compared/comparison.json").touch()
    with pytest.raises(InputError, match="belongs to a comparison, whose runs have the same"):
        run.distill(plan(out, 2), resume=True)


@pytest.mark.parametrize(
    ("settings", "before", "now", "done", "allowed"),
    [
        ({"milestones": ()}, 5, 50, 5, True),
        ({"milestones": (), "warmup": 3.0}, 5, 50, 5, True),
        ({}, 10, 20, 5, True),  # before its first milestone
        ({}, 10, 20, 6, True),
        ({}, 10, 20, 7, False),  # 0.625 of 10 is 6
        ({"schedule": "cosine"}, 5, 6, 1, False),
        ({"schedule": "cosine", "warmup": 2.0}, 5, 6, 2, True),  # all in the warmup
        ({"gamma": 1.0}, 10, 20, 10, True),
    ],
)
def test_the_rates_of_the_epochs_done_decide(
    settings: dict[str, Any], before: int, now: int, done: int, allowed: bool
) -> None:
    train = TrainSettings(epochs=now, **settings)
    if allowed:
        check_rates(train, before, done, Path("run"))
    else:
        with pytest.raises(InputError, match="run cannot go on to train"):
            check_rates(train, before, done, Path("run"))
