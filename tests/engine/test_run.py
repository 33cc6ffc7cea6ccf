"""Whole runs: what they leave, that they repeat, and that they go on where they stopped."""

from __future__ import annotations

import errno
import json
import os
import re
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest
import safetensors.torch
import torch
import yaml
from filelock import FileLock

import dskd
from dskd.cli.commands import main
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.engine import image_job, run, training_run
from dskd.engine.build_data import load_data
from dskd.engine.evaluate import EvaluationResult
from dskd.engine.prepare import prepare
from dskd.engine.trainer import Trainer
from dskd.errors import InputError, NonFiniteError, Quit, Stopped
from dskd.methods.ce import CE
from dskd.models.zoo import build
from dskd.runtime.device import environment
from dskd.storage import checkpoint
from dskd.storage.run_directory import RunDirectory
from dskd.storage.weights import read_metadata
from tests import processes, trainers
from tests.builders import make_dataset, trusted

SMALL = [
    "data.fraction=0.1",
    "teacher.name=resnet8",
    "teacher.epochs=3",
    "train.epochs=3",
    "train.batch_size=32",
]
"""The digits on a diet: 130 images, 5 steps an epoch."""
TIMES = ("epoch", "seconds", "data_seconds", "teacher_seconds", "checkpoint_seconds")


def plan(out: Path, *overrides: str) -> Recipe:
    return recipe.load("digits", [*SMALL, f"out={out}", *overrides])


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows(out)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished DSKD run, teacher included."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run.distill(plan(out))
    return out


@pytest.mark.slow
def test_a_run_leaves_the_files_it_promises(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "student.safetensors",
        "student_best.safetensors",
        "auxiliary.safetensors",
        "recipe.yaml",
        "metrics.jsonl",
        "environment.json",
        "result.json",
        "teacher_accuracy.json",
        "tensorboard",
        "teacher",
    }
    assert not [path for path in finished.rglob("*") if path.suffix == ".part"]
    facts = json.loads((finished / "teacher_accuracy.json").read_text())
    result = json.loads((finished / "result.json").read_text())
    assert facts["test_accuracy"] == result["teacher_accuracy"]
    environment = json.loads((finished / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"])


def test_metrics_say_an_epoch_a_line_and_what_every_stage_does(finished: Path) -> None:
    lines = rows(finished)
    assert [row["epoch"] for row in lines] == [1, 2, 3]
    for row in lines:
        assert row.keys() >= {"train_loss", "test_accuracy", "test_accuracy_top5", "lr", "seconds"}
        for stage in ("stage1", "stage2"):
            for name in ("prediction", "feature", "weight", "test_accuracy"):
                assert isinstance(row[f"{stage}/{name}"], float)
        assert row["stage1/weight"] + row["stage2/weight"] == pytest.approx(2)
        total = sum(row[f"loss/{name}"] for name in ("ce", "kd", "shallow"))
        assert row["train_loss"] == pytest.approx(total, rel=1e-5)
        right = row["train_accuracy"] * 130 / 100  # of 130 images
        assert right == pytest.approx(round(right), abs=1e-3)
        assert 0 < right < 130


def test_branches_never_reach_the_student_s_files(finished: Path) -> None:
    keys = dskd.load_model("resnet8", num_classes=10, in_channels=1).state_dict().keys()
    for name in ("student.safetensors", "student_best.safetensors"):
        assert safetensors.torch.load_file(finished / name).keys() == keys
    auxiliary = safetensors.torch.load_file(finished / "auxiliary.safetensors")
    assert all(key.startswith("branches.") for key in auxiliary)


def test_parts_of_a_method_may_share_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = torch.ones(2, 2)
    monkeypatch.setattr(CE, "auxiliary_state_dict", lambda _: {"one": shared, "two": shared.T})
    out = tmp_path / "run"
    run.distill(plan(out, "train.epochs=1", "method={name: ce}", "teacher=null"))
    assert safetensors.torch.load_file(out / "auxiliary.safetensors").keys() == {"one", "two"}


def test_the_student_s_file_tells_no_time_host_or_path(finished: Path) -> None:
    facts = read_metadata(finished / "student.safetensors")
    expected = ["model", "options", "classes", "shape", "method", "deploy_config", "mean", "std"]
    expected += ["pixels"]
    assert facts.keys() == set(expected)
    assert str(finished).encode() not in (finished / "student.safetensors").read_bytes()


@pytest.mark.slow
def test_the_stored_recipe_is_whole_and_runs_again(finished: Path, tmp_path: Path) -> None:
    stored = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert stored["method"]["temperature"] == 4.0
    again = recipe.resolve(stored | {"out": str(tmp_path / "again")}, tmp_path)
    run.distill(again)
    assert timeless(tmp_path / "again") == timeless(finished)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    finished: Path, tmp_path: Path
) -> None:
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    run.distill(plan(tmp_path / "same", teacher))
    run.distill(plan(tmp_path / "other", teacher, "seed=1"))
    weights = (finished / "student.safetensors").read_bytes()
    assert (tmp_path / "same/student.safetensors").read_bytes() == weights
    assert (tmp_path / "other/student.safetensors").read_bytes() != weights
    assert timeless(tmp_path / "same") == timeless(finished)


@pytest.mark.slow
def test_every_method_starts_from_the_same_student_and_sees_the_same_images(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    train_epoch = Trainer.train_epoch

    def spy(self: Trainer) -> Iterator[None]:
        name = type(self.method).__name__
        weights = self.method.deployed().state_dict()
        seen.setdefault(name, {k: v.clone() for k, v in weights.items()})
        return train_epoch(self)

    monkeypatch.setattr(Trainer, "train_epoch", spy)
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    for method in ("ce", "kd", "dskd"):
        run.distill(
            plan(tmp_path / method, teacher, f"method={{name: {method}}}", "train.epochs=1")
        )
    assert seen.keys() == {"CE", "KD", "DSKD"}
    for name in ("KD", "DSKD"):
        for key, value in seen["CE"].items():
            assert torch.equal(seen[name][key], value), (name, key)


def test_a_result_holds_what_the_files_say(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    last = rows(finished)[-1]
    assert result["test_accuracy"] == last["test_accuracy"]
    best = max(rows(finished), key=lambda row: row["test_accuracy"])
    assert result["best_test_accuracy"] == best["test_accuracy"]
    assert result["best_chosen_on"] == "test"
    evaluated = dskd.evaluate(finished)
    assert isinstance(evaluated, EvaluationResult)
    assert evaluated.accuracy == result["test_accuracy"]
    assert dskd.evaluate(finished, "best").accuracy == result["best_test_accuracy"]


def test_the_accuracy_of_a_run_is_that_of_its_files_counted_by_hand(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    kept = recipe.load(str(finished / "recipe.yaml"))
    data = load_data(kept.data)
    predictions = []
    for name in ("student.safetensors", "teacher/student.safetensors"):
        net = build("resnet8", num_classes=10, in_channels=1).eval()
        net.load_state_dict(safetensors.torch.load_file(finished / name))
        pixels = data.test.images.float() / 255
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
        with torch.no_grad():
            logits = net((pixels - mean) / std)
        predictions.append(logits.argmax(1))
        facts = read_metadata(finished / name)
        assert [facts["mean"], facts["std"]] == [
            pytest.approx(list(data.mean)),
            pytest.approx(list(data.std)),
        ]
    right = [100 * (p == data.test.labels).double().mean().item() for p in predictions]
    assert all(len(found.unique()) > 1 for found in predictions)
    assert [result["test_accuracy"], result["teacher_accuracy"]] == pytest.approx(right, abs=0.3)
    agreement = 100 * (predictions[0] == predictions[1]).double().mean().item()
    assert result["agreement"] == pytest.approx(agreement, abs=0.3)


@pytest.mark.slow
def test_held_out_images_choose_the_best_epoch(tmp_path: Path) -> None:
    changes = ["data.fraction=1", "data.val_fraction=0.2", "method={name: ce}", "train.epochs=2"]
    result = run.distill(plan(tmp_path / "run", *changes))
    lines = rows(tmp_path / "run")
    best = max(lines, key=lambda row: float(row["val_accuracy"]))
    assert result.best_chosen_on == "validation"
    assert result.best_epoch == best["epoch"]
    assert result.best_test_accuracy == best["test_accuracy"]


@pytest.fixture(scope="module")
def undisturbed(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, list[str]]]:
    """The folder of a method's run that was never stopped, and its settings."""

    @cache
    def folder(method: str) -> tuple[Path, list[str]]:
        own = tmp_path_factory.mktemp("undisturbed") / "whole"
        changes = [
            f"teacher.checkpoint={finished / 'teacher/student.safetensors'}",
            f"method={{name: {method}}}",
        ]
        run.distill(plan(own, *changes))
        return own, changes

    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stop_at"), [("ce", 7), ("kd", 7), ("dskd", 1), ("dskd", 7), ("dskd", 10)]
)
def test_a_stopped_run_goes_on_to_the_same_end(
    undisturbed: Callable[[str], tuple[Path, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    stop_at: int,
) -> None:
    """Stopped at the first step, mid-epoch and between epochs: weights and metrics to the byte."""
    undisturbed_run, changes = undisturbed(method)
    with monkeypatch.context() as patch:
        trainers.stop_at(patch, stop_at)
        with pytest.raises(Stopped) as stopped:
            run.distill(plan(tmp_path / "parts", *changes))
    assert stopped.value.signal == signal.SIGINT
    assert not (tmp_path / "parts/student.safetensors").exists()
    run.distill(plan(tmp_path / "parts", *changes), resume=True)
    for name in ("student.safetensors", "student_best.safetensors", "auxiliary.safetensors"):
        whole, parts = undisturbed_run / name, tmp_path / "parts" / name
        assert whole.exists() == parts.exists()
        assert not whole.exists() or whole.read_bytes() == parts.read_bytes()
    assert timeless(undisturbed_run) == timeless(tmp_path / "parts")


@pytest.mark.slow
def test_a_stop_while_the_teacher_trains_is_resumed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    train_epoch = Trainer.train_epoch

    def signalled(self: Trainer) -> Iterator[None]:
        for _ in train_epoch(self):
            if self.epoch == 1:
                signal.raise_signal(signal.SIGTERM)
            yield

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", signalled)
        with pytest.raises(Stopped):
            run.distill(plan(tmp_path / "run"))
    assert (tmp_path / "run/teacher").is_dir()
    with pytest.raises(InputError, match="resume=True"):
        run.distill(plan(tmp_path / "run"))
    run.distill(plan(tmp_path / "run"), resume=True)
    expected = (finished / "student.safetensors").read_bytes()
    assert (tmp_path / "run/student.safetensors").read_bytes() == expected


def test_resume_without_a_run_starts_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, finished: Path
) -> None:
    caplog.set_level("INFO", "dskd")
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    run.distill(plan(tmp_path / "run", teacher, "train.epochs=1"), resume=True)
    assert "starts from its first epoch" in caplog.text


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, finished: Path
) -> None:
    out = tmp_path / "run"
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    run.distill(plan(out, teacher))
    for name in ("result.json", "student.safetensors"):
        (out / name).unlink()
    older, newer = sorted((out / "checkpoints").iterdir())
    newer.write_bytes(newer.read_bytes()[:-1])
    run.distill(plan(out, teacher), resume=True)
    assert "damaged" in caplog.text
    assert (out / "student.safetensors").read_bytes() == (
        finished / "student.safetensors"
    ).read_bytes()
    (out / "result.json").unlink()
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="every checkpoint"):
        run.distill(plan(out, teacher), resume=True)
    assert older.suffix == ".checkpoint"


@pytest.mark.slow
def test_a_new_run_s_first_checkpoint_comes_before_its_first_step(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"

    def never(_: Trainer) -> Iterator[None]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", never)
        with pytest.raises(KeyboardInterrupt):
            run.distill(plan(tmp_path / "run", teacher))
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 1
    run.distill(plan(tmp_path / "run", teacher), resume=True)
    expected = (finished / "student.safetensors").read_bytes()
    assert (tmp_path / "run/student.safetensors").read_bytes() == expected


@pytest.mark.slow
def test_checkpoints_cost_a_share_of_the_training_that_the_metrics_show(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    written: list[tuple[int, int]] = []
    write = checkpoint.write

    def noted(folder: Path, state: dict[str, Any], before: Path | None) -> Path:
        written.append((state["epoch"], state["step"]))
        return write(folder, state, before)

    monkeypatch.setattr(checkpoint, "write", noted)
    monkeypatch.setattr(training_run, "CHECKPOINT_SHARE", 0.0)  # no training is long enough
    result = run.distill(plan(tmp_path / "dear", teacher))
    assert written == [(0, 0), (3, 0)]
    shown = [row["checkpoint_seconds"] for row in rows(tmp_path / "dear")]
    assert shown[0] > 0
    assert shown[1:] == [0, 0]
    assert result.checkpoint_seconds > shown[0]
    written.clear()
    monkeypatch.setattr(training_run, "CHECKPOINT_SHARE", 1e9)
    run.distill(plan(tmp_path / "cheap", teacher))
    assert written == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert timeless(tmp_path / "cheap") == timeless(tmp_path / "dear") == timeless(finished)


@pytest.mark.slow
@pytest.mark.parametrize("left", [["environment.json"], ["recipe.yaml"], []])
def test_a_run_that_was_killed_as_it_began_or_was_removed_can_begin(
    tmp_path: Path, finished: Path, left: list[str]
) -> None:
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    out = tmp_path / "run"
    run.distill(plan(out, teacher, "train.epochs=1"))
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(".") and path.name not in left:
            path.unlink()
    if left:
        with pytest.raises(InputError, match="already holds a run"):
            run.distill(plan(out, teacher, "train.epochs=1"))
    run.distill(plan(out, teacher, "train.epochs=1"), resume=True)
    assert len(rows(out)) == 1


def test_a_row_that_a_kill_cut_short_is_written_again(tmp_path: Path, finished: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "result.json").unlink()
    whole = (out / "metrics.jsonl").read_bytes()
    (out / "metrics.jsonl").write_bytes(whole[:-20])
    run.distill(plan(out), resume=True)
    assert (out / "metrics.jsonl").read_bytes() == whole


def test_checkpoints_that_are_gone_are_not_taken_for_a_run_without_any(
    tmp_path: Path, finished: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "result.json").unlink()
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(InputError, match=r"are gone; remove .* to start again"):
        run.distill(plan(out), resume=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recipe": {"seed": 1}}, "is of another recipe: .*seed is 1 there, 0 here"),
        ({"fingerprints": {"data": "x", "teacher": "x"}}, "with other images"),
        ({"trainer": {"processes": [{}, {}]}}, "with 2 processes, and there are 1"),
        ({"best": {"epok": 1}}, "does not fit the model or the method as they are now"),
        ({"best": {"epoch": 1, "score": "high", "accuracy": 1.0}}, "'score' is no number"),
        ({"rows": [5]}, "does not fit the model"),
        ({"rows": [{"epoch": 1, "seconds": None}]}, "does not fit .*_seconds is missing"),
        ({"rows": [dict.fromkeys(TIMES, None)]}, "does not fit .*'epoch' is no number"),
        ({"recipe": {}}, "is of another recipe"),
        ({"fingerprints": {}}, "does not fit"),
        ({"trainer": {}}, "does not fit"),
        ({"trainer": {"processes": 5}}, "does not fit"),
        ({"trainer": {"processes": [5], "method": 5}}, "does not fit"),
    ],
)
def test_a_checkpoint_of_anything_else_is_refused(
    tmp_path: Path, finished: Path, changed: dict[str, Any], message: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "result.json").unlink()
    (newest,) = checkpoint.in_order(out / "checkpoints")[-1:]
    checkpoint.write(out / "checkpoints", checkpoint.read(newest) | changed)
    with pytest.raises(InputError, match=message):
        run.distill(plan(out), resume=True)


def test_a_run_goes_on_whose_recipe_is_older_than_settings(tmp_path: Path, finished: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "result.json").unlink()
    (newest,) = checkpoint.in_order(out / "checkpoints")[-1:]
    state = checkpoint.read(newest)
    stored = yaml.safe_load((out / "recipe.yaml").read_text())
    for values in (stored, state["recipe"]):
        for section, key in (("data", "labels"), ("train", "exits"), ("train", "int8_rounding")):
            del values[section][key]
    checkpoint.write(out / "checkpoints", state)
    older = stored | {"train": stored["train"] | {"old": 1}}
    (out / "recipe.yaml").write_text(yaml.safe_dump(older))
    line = r"another recipe: train\.old is 1 there, and this version has no such setting; resume"
    with pytest.raises(InputError, match=line):
        run.distill(plan(out), resume=True)
    (out / "recipe.yaml").write_text(yaml.safe_dump(stored))
    run.distill(plan(out), resume=True)
    for name in ("recipe.yaml", "student.safetensors"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_a_second_signal_does_not_wait_for_the_step(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"

    def endless(_: Trainer) -> Iterator[None]:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        yield

    monkeypatch.setattr(Trainer, "train_epoch", endless)
    with pytest.raises(Quit):
        run.distill(plan(tmp_path / "run", teacher))
    with pytest.raises(SystemExit) as ended:
        main(["distill", "digits", *SMALL, teacher, f"out={tmp_path / 'command'}"])
    assert ended.value.code == 143


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_a_line_and_the_older_checkpoint_goes_on(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    out = tmp_path / "run"
    verify = checkpoint._verify_written
    calls: list[int] = []

    def full(file: IO[bytes]) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        verify(file)

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "CHECKPOINT_SHARE", 1e9)
        patch.setattr(checkpoint, "_verify_written", full)
        with pytest.raises(SystemExit) as stop:
            main(["distill", "digits", *SMALL, teacher, f"out={out}"])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"No space left on device; [\d,]{7,} bytes were needed, [\d,]+ are", line)
    assert len(list((out / "checkpoints").iterdir())) == 2
    run.distill(plan(out, teacher), resume=True)
    expected = (finished / "student.safetensors").read_bytes()
    assert (out / "student.safetensors").read_bytes() == expected


@pytest.mark.slow
def test_a_folder_with_a_run_is_refused_resumed_by_its_own_recipe_or_replaced(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    run.distill(plan(out, teacher, "train.epochs=1"))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"already holds a run.*resume=True.*overwrite=True"):
        run.distill(plan(out, teacher, "train.epochs=1"))
    with pytest.raises(InputError, match=r"train\.batch_size is \d+ there, 7 here"):
        run.distill(plan(out, teacher, "train.epochs=1", "train.batch_size=7"), resume=True)
    with pytest.raises(
        InputError, match=r"cannot go on to train={\"epochs\": 2}: the schedule 'cosine'"
    ):
        run.distill(plan(out, teacher, "train.epochs=2"), resume=True)
    with pytest.raises(InputError, match="finished run"):
        run.distill(plan(out, teacher, "train.epochs=1"), resume=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    (out / "notes.txt").write_text("mine")
    run.distill(plan(out, teacher, "train.epochs=2"), overwrite=True)
    assert len(rows(out)) == 2
    assert (out / "notes.txt").read_text() == "mine"


def test_other_images_are_refused_on_resume(tmp_path: Path, finished: Path) -> None:
    teacher = str(finished / "teacher/student.safetensors")
    digits: dict[str, Any] = {"classes": tuple("0123456789")}  # those of the teacher
    data = replace(make_dataset(classes=10, channels=1, size=8), **digits)
    arguments: dict[str, Any] = {
        "student": "resnet8",
        "teacher": {"name": "resnet8", "checkpoint": teacher, "trust": True},
        "train": {"epochs": 1},
        "out": tmp_path / "run",
    }
    dskd.distill(data=data, **arguments)
    (tmp_path / "run/result.json").unlink()
    other = replace(make_dataset(classes=10, channels=1, size=8, seed=1), **digits)
    with pytest.raises(InputError, match="other images"):
        dskd.distill(data=other, resume=True, **arguments)


@pytest.mark.slow
def test_a_finished_teacher_of_other_images_is_not_taken(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "student": "resnet8",
        "teacher": {"name": "resnet8"},
        "train": {"epochs": 1},
        "out": tmp_path / "run",
    }
    data, other = (make_dataset(classes=10, channels=1, size=8, seed=seed) for seed in (0, 1))
    dskd.distill(data=data, **arguments)
    for path in (tmp_path / "run").glob("*.jsonl"):  # as killed before its first checkpoint
        path.unlink()
    (tmp_path / "run/result.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(InputError, match=r"run/teacher was trained on other images"):
        dskd.distill(data=other, resume=True, **arguments)
    dskd.distill(data=data, resume=True, **arguments)


def test_an_objective_that_is_not_finite_stops_before_the_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["method={name: ce, ce: 1.0e+30}", "train.lr=1e6", "train.epochs=5"]
    with pytest.raises(
        NonFiniteError, match=r"not finite .* on 32 images, the first .*lower train.lr"
    ):
        run.distill(plan(tmp_path / "run", *changes))
    monkeypatch.setattr(sys, "argv", ["dskd"])
    alone = [change for change in SMALL if not change.startswith("teacher.")]
    with pytest.raises(SystemExit) as exit_:
        main(["distill", "digits", *alone, *changes, f"out={tmp_path / 'again'}"])
    assert exit_.value.code == 3


@pytest.mark.slow
@pytest.mark.parametrize("images", [33, 34, 2])
def test_an_odd_last_batch_trains_without_harm(tmp_path: Path, images: int) -> None:
    data = make_dataset(classes=2, per_class=20, size=8)
    few = dskd.Dataset(
        "few", data.train.take(torch.arange(images)), data.test, data.classes, data.mean, data.std
    )
    result = dskd.distill(
        student="resnet8",
        teacher=trusted(dskd.load_model("resnet8", num_classes=2)),
        data=few,
        train={"epochs": 1, "batch_size": 32},
        out=tmp_path / "run",
    )
    assert all(value.isfinite().all() for value in result.student.state_dict().values())


@pytest.mark.slow
def test_bfloat16_trains_to_finite_weights_in_float32(tmp_path: Path, finished: Path) -> None:
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    result = run.distill(plan(tmp_path / "run", teacher, "train.precision=bfloat16"))
    for value in result.student.state_dict().values():
        assert value.dtype in (torch.float32, torch.int64)
        assert value.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_process_with_its_state_saved(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    words = ["-m", "dskd", "train", "digits", "train.epochs=5000", f"out={out}"]
    errors = tmp_path / "errors"
    process = processes.start(words, tmp_path / "output", errors)
    assert process.pid is not None
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert process.is_alive(), errors.read_text()
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert processes.wait(process, 60) == code
    assert "--resume" in errors.read_text()
    assert list((out / "checkpoints").iterdir())
    assert (out / "recipe.yaml").exists()


def test_a_teacher_of_another_recipe_is_not_taken_for_this_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        trainers.stop_at(patch, 1)
        with pytest.raises(Stopped):
            run.distill(plan(tmp_path / "run"))
    with pytest.raises(InputError, match=r"train\.lr is 0\.05 there, 0\.1 here"):
        run.distill(plan(tmp_path / "run", "train.lr=0.1"), resume=True)


def test_two_processes_do_not_share_a_folder(tmp_path: Path, finished: Path) -> None:
    out = tmp_path / "run"
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(InputError, match="another process is at work in"):
        run.distill(plan(out, teacher, "train.epochs=1"))
    run.distill(plan(out, teacher, "train.epochs=1"))


@pytest.mark.slow
def test_overwrite_takes_nothing_but_a_run_and_nothing_that_is_needed(
    tmp_path: Path, finished: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    inside = f"teacher.checkpoint={out / 'teacher/student.safetensors'}"
    with pytest.raises(InputError, match="overwrite=True would empty"):
        run.distill(plan(out, inside), overwrite=True)
    assert (out / "teacher/student.safetensors").is_file()
    mine = tmp_path / "mine"
    (mine / "teacher").mkdir(parents=True)
    (mine / "teacher/weights.pth").write_bytes(b"mine")
    with pytest.raises(InputError, match="holds other files"):
        run.distill(plan(mine), overwrite=True)
    (mine / "environment.json").write_text("{}")
    (mine / "recipe.yaml").write_text("flour: 1")
    with pytest.raises(InputError, match="holds other files"):
        run.distill(plan(mine), overwrite=True)
    assert (mine / "teacher/weights.pth").read_bytes() == b"mine"
    linked = tmp_path / "linked"
    shutil.copytree(finished, linked)
    shutil.rmtree(linked / "teacher")
    (linked / "teacher").symlink_to(finished / "teacher")
    run.distill(plan(linked, "teacher.epochs=1", "train.epochs=1"), overwrite=True)
    assert len(rows(linked / "teacher")) == 1
    assert len(rows(finished / "teacher")) == 3


def test_a_run_is_known_whatever_its_command_was(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    monkeypatch.setattr(sys, "argv", ["dskd", "\x7f\ud800", "x" * 10_000])
    facts = environment(torch.device("cpu"))
    (out / "environment.json").write_text(json.dumps(facts))
    directory = RunDirectory(out)
    directory.check(plan(out), resume=False, overwrite=True)
    (out / "environment.json").unlink()
    (out / "environment.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="no plain file"):
        directory.check(plan(out), resume=False, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_parts_of_anything_else_make_a_folder_somebody_s(tmp_path: Path, overwrite: bool) -> None:
    own = tmp_path / "own"
    (own / ".thesis.part").mkdir(parents=True)
    for name in (".thesis.part/x.txt", ".film.part"):
        (own / name).write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        run.distill(plan(own), overwrite=overwrite)
    assert [(own / name).read_text() for name in (".thesis.part/x.txt", ".film.part")] == [
        "mine",
        "mine",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", [["teacher=null"], ["teacher.epochs=1"]])
def test_a_run_that_lies_in_the_teacher_s_place_is_not_the_run_s(
    tmp_path: Path, method: list[str]
) -> None:
    out = tmp_path / "run"
    by_labels = [*method, "method={name: ce}", "train.epochs=1"]
    run.distill(plan(out, *by_labels))
    run.train(plan(out / "teacher", "train.epochs=1"))
    weights = (out / "teacher" / "student.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"teacher is no part of the run in .*move it out"):
        run.distill(plan(out), overwrite=True)
    assert (out / "result.json").is_file()
    run.distill(plan(out, *by_labels), overwrite=True)
    assert (out / "teacher" / "student.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_the_teacher_s_folder_has_one_owner_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run/teacher"
    train_epoch, refused = Trainer.train_epoch, []

    def meanwhile(self: Trainer) -> Iterator[None]:
        monkeypatch.undo()
        with monkeypatch.context() as another_process:
            another_process.setattr(run, "single_run", nullcontext)
            again = recipe.load(str(folder / "recipe.yaml"), [f"out={folder}"])
            with pytest.raises(InputError, match=f"process {os.getpid()} is at work in {folder}"):
                run.train(again, overwrite=True)
        refused.append(folder)
        return train_epoch(self)

    monkeypatch.setattr(Trainer, "train_epoch", meanwhile)
    run.distill(plan(tmp_path / "run", "teacher.epochs=1", "train.epochs=1"))
    assert refused == [folder]


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "teacher"])
def test_a_run_whose_folders_are_links_does_not_go_on(
    tmp_path: Path, finished: Path, name: str
) -> None:
    out, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(finished, out)
    (out / "result.json").unlink()
    (out / name).rename(outside)
    (outside / ".b.part").write_text("mine")
    (out / name).symlink_to(outside)
    before = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    with pytest.raises(InputError, match=f"{name} is a link, and nothing is written through it"):
        run.distill(plan(out), resume=True)
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_while_a_method_prepares_itself_is_told_and_starts_anew(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    changes = [teacher, "method={name: sskd, head_epochs: 2}", "train.epochs=1"]
    with_outputs, seen = Trainer._epochs_with_teacher_outputs, []

    def signalled(self: Trainer, check: Any, epochs: int) -> Iterator[Any]:
        for batch in with_outputs(self, check, epochs):
            seen.append(batch)
            signal.raise_signal(number)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epochs_with_teacher_outputs", signalled)
        with pytest.raises(SystemExit) as ended:
            main(["distill", "digits", *SMALL, *changes, f"out={tmp_path / 'run'}"])
    assert ended.value.code == code
    assert len(seen) == 1
    assert "stopped before the first step; with --resume" in capsys.readouterr().err
    run.distill(plan(tmp_path / "run", *changes), resume=True)
    run.distill(plan(tmp_path / "whole", *changes))
    weights = [(tmp_path / n / "student.safetensors").read_bytes() for n in ("run", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_another_teacher_is_refused_on_resume(tmp_path: Path, finished: Path) -> None:
    checkpoint = tmp_path / "teacher.safetensors"
    shutil.copy(finished / "teacher/student.safetensors", checkpoint)
    out = tmp_path / "run"
    run.distill(plan(out, f"teacher.checkpoint={checkpoint}"))
    (out / "result.json").unlink()
    moved, other = tmp_path / "moved.safetensors", tmp_path / "other.safetensors"
    checkpoint.rename(moved)
    shutil.copy(finished / "student.safetensors", other)
    before = (out / "recipe.yaml").read_bytes()
    with pytest.raises(InputError, match="another teacher"):
        run.distill(plan(out, f"teacher.checkpoint={other}"), resume=True)
    assert (out / "recipe.yaml").read_bytes() == before
    run.distill(plan(out, f"teacher.checkpoint={moved}"), resume=True)
    assert str(moved) in (out / "recipe.yaml").read_text()


@pytest.mark.slow
def test_what_a_killed_write_left_is_no_run_and_goes_with_it(
    tmp_path: Path, finished: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".recipe.yaml.x0_abcde.part").write_bytes(b"half")
    (out / ".teacher.part").mkdir()
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    run.distill(plan(out, teacher, "train.epochs=1"), resume=True)
    run.distill(plan(out, teacher, "train.epochs=1"), overwrite=True)
    assert not list(out.glob(".*.part"))


def test_the_stored_recipe_can_be_given_to_another_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = recipe.load(str(finished / "recipe.yaml"), ["train.epochs=1", "teacher.epochs=1"])
    assert again.out == Path("runs/recipe/dskd-seed0")


def test_a_folder_with_somebody_s_own_recipe_is_no_run(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "teacher").mkdir(parents=True)
    (own / "teacher/notes.txt").write_text("mine")
    (own / "recipe.yaml").write_text("data: {name: digits}\nstudent: {name: resnet8}\n")
    with pytest.raises(InputError, match="holds other files"):
        run.distill(plan(own), overwrite=True)
    assert (own / "teacher/notes.txt").read_text() == "mine"


def test_a_run_that_came_while_the_images_were_read_is_not_replaced(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def slow(*arguments: Any) -> Any:
        prepared = prepare(*arguments)
        shutil.copytree(finished, out)
        return prepared

    monkeypatch.setattr(image_job, "prepare", slow)
    teacher = f"teacher.checkpoint={finished / 'teacher/student.safetensors'}"
    with pytest.raises(InputError, match="already holds a run"):
        run.distill(plan(out, teacher, "train.epochs=1"))
    assert len(rows(out)) == 3


def test_results_are_gathered_from_finished_runs(finished: Path) -> None:
    names = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/collect.py"))
    gathered = names["read_run"](finished)
    assert gathered["recipe"]["student"]["name"] == "resnet8"
    assert str(finished) not in json.dumps(gathered["recipe"])
    teacher = names["read_run"](finished / "teacher")
    assert "| dskd | resnet8 | 77,754 |" in "\n".join(names["table"](teacher, [gathered]))
