"""Comparisons in jobs: the same rows as in one process, and what a lost job costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dskd.compare import jobs
from dskd.compare.job import ComparisonJob, TeacherJob
from dskd.compare.losses import Losses
from dskd.compare.runner import run_grid
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.methods.contracts import TeacherNeeds
from dskd.runtime.launchers.processes import Processes
from dskd.runtime.launchers.slurm import Slurm, SlurmOptions
from dskd.runtime.launchers.task import Task
from dskd.storage.run_files import LOST, METRICS
from tests import processes
from tests.compare.small_comparison import Here, Silent, small, students


def divided(out: Path, limit: int | None, share_teacher: bool = True) -> list[str]:
    grid = small(out, share_teacher=share_teacher)
    return [
        f"{','.join(v.label for v in variants)} {seed}"
        for variants, seed in jobs.groups(grid, limit)
    ]


def test_how_runs_are_divided_into_jobs(tmp_path: Path) -> None:
    seeds = ["ce,kd,dskd 0", "ce,kd,dskd 1"]
    runs = ["ce 0", "kd 0", "dskd 0", "ce 1", "kd 1", "dskd 1"]
    assert divided(tmp_path, 1) == divided(tmp_path, 2) == seeds
    assert divided(tmp_path, 3) == ["ce,dskd 0", "kd 0", "ce,dskd 1", "kd 1"]
    assert divided(tmp_path, 6) == divided(tmp_path, 100) == divided(tmp_path, None) == runs
    assert divided(tmp_path, 2, share_teacher=False) == runs
    (tmp_path / "kd/seed0").mkdir(parents=True)
    (tmp_path / "kd/seed0/result.json").touch()
    assert divided(tmp_path, 2) == ["ce,dskd 0", "ce,kd,dskd 1"]


def rows(out: Path) -> list[tuple[str, int, float]]:
    read = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return sorted((row["label"], row["seed"], row["test_accuracy"]) for row in read)


@pytest.mark.slow
def test_jobs_train_the_same_students(finished: Path, tmp_path: Path) -> None:
    launcher = Here(2)
    comparison = run_grid(small(tmp_path / "jobs"), Silent(), launcher=launcher)
    assert launcher.groups == [["ce 0", "kd 0", "dskd 0"], ["ce 1", "kd 1", "dskd 1"]]
    assert students(tmp_path / "jobs") == students(finished)
    assert rows(tmp_path / "jobs") == rows(finished)
    assert all(sorted(variant.results) == [0, 1] for variant in comparison.variants)


@pytest.mark.slow
def test_processes_train_the_same_students(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes.fork_jobs(monkeypatch)
    run_grid(small(tmp_path / "jobs"), Silent(), launcher=Processes(2, threads=1, gpus=0))
    assert students(tmp_path / "jobs") == students(finished)
    assert rows(tmp_path / "jobs") == rows(finished)


@pytest.mark.slow
def test_jobs_of_submitit_train_the_same_students(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    options = SlurmOptions(cluster="local", time=5)
    launcher = Slurm(None, options, tmp_path / "out" / jobs.JOB_FILES)
    run_grid(small(tmp_path / "out", "ce", seeds=1), Silent(), launcher=launcher)
    assert students(tmp_path / "out") == {"ce/seed0": students(finished)["ce/seed0"]}


def has(label: str) -> Callable[[Task], bool]:
    return lambda task: (
        isinstance(task, ComparisonJob) and label in [variant.label for variant in task.variants]
    )


@pytest.mark.slow
def test_a_run_whose_jobs_are_lost_costs_itself_only(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "lost"
    launcher = Here(1, loses=has("kd"))
    kd, dskd = run_grid(small(out, "kd,dskd", seeds=1), Silent(), launcher=launcher).variants
    assert launcher.groups == [["kd 0", "dskd 0"], ["kd 0"], ["dskd 0"]]
    assert kd.failed == {0: "its node is gone; the same command tries it again"}
    assert sorted(dskd.results) == [0]
    assert [row[:2] for row in rows(out)] == [("dskd", 0)]
    kd, dskd = run_grid(small(out, "kd,dskd", seeds=1), Silent(), launcher=Here(1)).variants
    assert (sorted(kd.results), kd.failed) == ([0], {})
    assert [row[:2] for row in rows(out)] == [("dskd", 0), ("kd", 0)]
    assert not list(out.rglob(LOST))
    found = students(out)
    assert found == {key: students(finished)[key] for key in found}


@pytest.mark.slow
def test_a_run_that_fails_in_a_job_is_told_of_and_the_others_go_on(tmp_path: Path) -> None:
    grid = small(tmp_path / "out", "kd:ce=0:kd=1.0e+25,ce", seeds=1)
    kd, ce = run_grid(grid, Silent(), launcher=Here(1)).variants
    assert "not finite" in kd.failed[0]
    assert sorted(ce.results) == [0]
    assert has_row_of_failure(tmp_path / "out")


def has_row_of_failure(out: Path) -> bool:
    read = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return any("not finite" in row.get("failed", "") for row in read)


@pytest.mark.slow
def test_a_teacher_that_cannot_be_trained_elsewhere_ends_the_comparison(tmp_path: Path) -> None:
    lost: list[Task] = []

    def loses(task: Task) -> bool:
        if isinstance(task, TeacherJob):
            lost.append(task)
        return isinstance(task, TeacherJob)

    with pytest.raises(InputError, match="the teacher cannot be trained: its node is gone"):
        run_grid(small(tmp_path / "out", "kd", seeds=1), Silent(), launcher=Here(1, loses))
    assert len(lost) == 2


def test_losses_count_only_without_a_new_epoch(tmp_path: Path) -> None:
    losses = Losses(tmp_path)
    log = tmp_path / METRICS
    for epochs in (1, 2, 3):
        log.write_text('{"epoch": 1}\n' * epochs)
        assert not losses.is_last()
    assert losses.epochs == 3
    assert losses.is_last()


@pytest.mark.slow
def test_a_machine_with_other_images_is_refused(tmp_path: Path) -> None:
    grid = small(tmp_path, "ce", seeds=1)
    facts = {"data": "other images", "teacher": None}
    job = ComparisonJob(grid, grid.variants, 0, UserObjects(), TeacherNeeds(), facts)
    with pytest.raises(InputError, match="the data that this run reads is not that of the compar"):
        job()
