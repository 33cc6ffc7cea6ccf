"""Comparisons: the same students as single runs, and continued after a stop."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from dskd.compare.grid import Grid, load_plan
from dskd.compare.runner import run_grid
from dskd.compare.summary import summarize
from dskd.config import recipe
from dskd.deploy.student import load_deployed
from dskd.engine import run
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, Stopped
from dskd.methods.kd import KD
from dskd.storage.run_files import LAST
from tests.compare.small_comparison import NAMES, SMALL, Silent, StopsAfter, small, students


@pytest.mark.slow
def test_a_student_of_a_comparison_is_that_of_a_run_of_its_own(
    finished: Path, tmp_path: Path
) -> None:
    for method in NAMES.split(","):
        own = recipe.load(
            "digits",
            [
                *SMALL,
                f"method={{name: {method}}}",
                "seed=1",
                f"teacher.checkpoint={finished / 'teacher' / LAST}",
                "teacher.trust=true",
                f"out={tmp_path / method}",
            ],
        )
        run.distill(own)
        assert (tmp_path / method / LAST).read_bytes() == students(finished)[f"{method}/seed1"]


@pytest.mark.slow
def test_sharing_the_teacher_changes_nothing(finished: Path, tmp_path: Path) -> None:
    run_grid(small(tmp_path / "alone", share_teacher=False), Silent())
    assert students(tmp_path / "alone") == students(finished)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 7, 20, 31])
def test_a_stopped_comparison_goes_on_to_the_same_bytes(
    finished: Path, tmp_path: Path, steps: int
) -> None:
    out, seeds = tmp_path / "stopped", 2 if steps > 20 else 1  # 31 lies in the second seed
    with pytest.raises(Stopped):
        run_grid(small(out, seeds=seeds), StopsAfter(steps))
    run_grid(small(out, seeds=seeds), Silent())
    found, whole = students(out), students(finished)
    assert found == {name: whole[name] for name in found}
    assert len(found) == 3 * seeds + 1  # with the teacher


class Dropping(nn.Module):
    """A student that draws from torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2)
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(x)).mean((2, 3)))
        return logits


@pytest.mark.slow
def test_students_that_drop_features_go_on_with_random_numbers_of_their_own(tmp_path: Path) -> None:
    given = UserObjects(student=Dropping())

    def small(out: Path) -> Grid:
        changes = [*SMALL, "student.stages=[first, second]"]
        return load_plan("digits", changes, ["ce,kd"], out, seeds=1)

    run_grid(small(tmp_path / "whole"), Silent(), given)
    with pytest.raises(Stopped):
        run_grid(small(tmp_path / "parts"), StopsAfter(5), given)
    run_grid(small(tmp_path / "parts"), Silent(), given)
    found = students(tmp_path / "parts")
    assert found == students(tmp_path / "whole")
    assert len(found) == 3


@pytest.mark.slow
def test_what_is_finished_stays_and_more_can_be_added(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "grows"
    run_grid(small(out, "kd", seeds=1), Silent())
    written = (out / "kd/seed0/result.json").stat().st_mtime_ns
    comparison = run_grid(small(out), Silent())
    assert (out / "kd/seed0/result.json").stat().st_mtime_ns == written
    assert [(v.label, sorted(v.results)) for v in comparison.variants] == [
        ("kd", [0, 1]),
        ("ce", [0, 1]),
        ("dskd", [0, 1]),
    ]
    assert students(out) == students(finished)
    kd, ce, dskd = summarize(comparison.variants, comparison.test_images)
    assert {kd.path, ce.path, dskd.path} == {out}
    assert kd.runs == {seed: out / "kd" / f"seed{seed}" for seed in (0, 1)}
    assert [load_deployed(path).name for path in kd.runs.values()] == ["resnet8", "resnet8"]


@pytest.mark.slow
def test_a_method_that_diverges_is_told_of_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    forward = KD.forward

    def diverging(self: KD, *inputs: Any) -> Any:
        calls.append(1)
        output = forward(self, *inputs)
        factor = float("nan") if len(calls) > 4 else 1.0
        return output._replace(losses={k: factor * v for k, v in output.losses.items()})

    monkeypatch.setattr(KD, "forward", diverging)
    out = tmp_path / "diverges"
    comparison = run_grid(small(out, "kd,dskd", seeds=1), Silent())
    kd, dskd = comparison.variants
    assert "the loss is not finite" in kd.failed[0]
    assert sorted(dskd.results) == [0]
    calls.clear()
    again = run_grid(small(out, "kd,dskd", seeds=1), Silent())  # it would fail again
    assert again.variants[0].failed == kd.failed
    assert summarize(again.variants, again.test_images)[0].test_accuracy is None


@pytest.mark.slow
def test_a_method_whose_student_has_nonfinite_logits_is_reported_too(tmp_path: Path) -> None:
    changes = ["train.epochs=1", "train.batch_size=130"]  # it ends before another step
    names = ["kd:ce=0:kd=1.0e+25", "ce"]
    plan = load_plan("digits", [*SMALL, *changes], names, tmp_path / "out", seeds=1)
    kd, ce = run_grid(plan, Silent()).variants
    assert "the logits are not finite after step 1 of epoch 1" in kd.failed[0]
    assert sorted(ce.results) == [0]


def test_a_method_that_does_not_fit_is_named_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "misfit"
    grid = load_plan("digits", [*SMALL, "student.stages=[layer3]"], ["ce,kd,dskd"], out, seeds=1)
    with pytest.raises(InputError, match=r"^dskd: branches are put on the stages before the last"):
        run_grid(grid, Silent())
    assert not out.exists()


@pytest.mark.slow
def test_a_comparison_that_was_moved_goes_on(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run_grid(small(tmp_path / "here", seeds=1), StopsAfter(20))
    (tmp_path / "here").rename(tmp_path / "there")
    run_grid(small(tmp_path / "there", seeds=1), Silent())
    found, whole = students(tmp_path / "there"), students(finished)
    assert found == {name: whole[name] for name in found}
    assert len(found) == 4


@pytest.mark.slow
def test_a_run_that_cannot_go_on_is_named_to_be_removed(tmp_path: Path) -> None:
    out = tmp_path / "damaged"
    with pytest.raises(Stopped):
        run_grid(small(out, "ce", seeds=1), StopsAfter(6))
    for path in (out / "ce/seed0/checkpoints").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"remove .*damaged/ce/seed0 to start again"):
        run_grid(small(out, "ce", seeds=1), Silent())
    shutil.rmtree(out / "ce/seed0")
    run_grid(small(out, "ce", seeds=1), Silent())
