"""Runs on graphs: results, files, and a resume that is exact to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dskd.engine.tasks.graphs.student import evaluate, load_student, predict
from dskd.engine.trainer import Trainer
from dskd.errors import InputError, Stopped
from dskd.report.build import make_report
from tests.graphs.conftest import METHODS
from tests.graphs.small_graphs import plan, trained, write


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_has_the_files_of_every_run(finished: Path, method: str) -> None:
    folder = finished / method
    result = json.loads((folder / "result.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert rows[-1]["test_accuracy"] == result["test_accuracy"]
    assert result["method"] == f"graphs/{method}"
    assert result["best_chosen_on"] == "validation"
    assert (result["teacher_accuracy"] is not None) == (method == "dskd")
    found = evaluate(folder)
    assert (found.metric, found.accuracy) == ("accuracy", result["test_accuracy"])


def test_the_other_students_are_kept(finished: Path) -> None:
    row = json.loads((finished / "alignahead/metrics.jsonl").read_text().splitlines()[-1])
    assert evaluate(finished / "alignahead", number=2).accuracy == row["student2/test_accuracy"]
    for number in (3, "2", 2.0):
        with pytest.raises(InputError, match=f"no student {number!r}"):
            load_student(finished / "alignahead", number=number)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown choice of weights 'Last'; did you mean 'last'"):
        load_student(finished / "alignahead", "Last")  # type: ignore[arg-type]


class _Kill(BaseException):
    """Ends a run as a kill does: nothing more is written."""


@pytest.mark.parametrize("method", ["alignahead++", "dskd"])
@pytest.mark.parametrize("step", [3, 4])
def test_a_killed_run_resumes_to_the_byte(
    graph: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    step: int,
) -> None:
    train_epoch, done = Trainer.train_epoch, 0

    def killed(self: Trainer) -> Any:
        nonlocal done
        for _ in train_epoch(self):
            done += 1
            if done == step:
                raise _Kill
            yield

    monkeypatch.setattr(Trainer, "train_epoch", killed)
    with pytest.raises(_Kill):
        trained(graph, method, tmp_path / "run")
    monkeypatch.undo()
    trained(graph, method, tmp_path / "run", resume=True)
    for name in ("student.safetensors", "auxiliary.safetensors", "student_best.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / method / name).read_bytes()


def test_a_stop_in_the_middle_of_an_epoch_resumes_to_the_byte(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    changes = ("student.dropout=0.5",)
    trained(graph, "alignahead", tmp_path / "whole", *changes)
    train_epoch, done = Trainer.train_epoch, 0

    def stopped(self: Trainer) -> Any:
        nonlocal done
        for _ in train_epoch(self):
            done += 1
            if done == 3:  # the first student's turn in epoch 2
                signal.raise_signal(signal.SIGTERM)
            yield

    monkeypatch.setattr(Trainer, "train_epoch", stopped)
    with pytest.raises(Stopped):
        trained(graph, "alignahead", tmp_path / "run", *changes)
    monkeypatch.undo()
    trained(graph, "alignahead", tmp_path / "run", *changes, resume=True)
    for name in ("student.safetensors", "auxiliary.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_several_labels_are_measured_by_micro_f1(tmp_path: Path) -> None:
    from dskd.engine.run import run_job
    from dskd.engine.tasks.graphs.job import GraphJob
    from dskd.engine.tasks.graphs.recipe import RECIPES

    changes = ["data.name=generated-multilabel", "train.epochs=1", f"out={tmp_path / 'run'}"]
    result = run_job(GraphJob(RECIPES.load("ppi", [*changes, "student.hidden=4"])))
    assert result.metric == "micro_f1"
    stored = json.loads((tmp_path / "run/result.json").read_text())
    (row,) = (json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open())
    assert stored["metric"] == "micro_f1"
    assert stored["test_micro_f1"] == row["test_micro_f1"] == result.test_accuracy
    assert "test_accuracy" not in {**stored, **row}
    found = evaluate(tmp_path / "run")
    assert (found.metric, found.accuracy) == ("micro_f1", result.test_accuracy)
    rows = list(predict(load_student(tmp_path / "run"), None, 2))
    assert len(rows) == 120
    assert rows[60][0] == "2:0"


def test_a_student_predicts_the_nodes_of_another_graph(finished: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.npz", labels=None, train=None, val=None, test=None)
    student = load_student(finished / "alone")
    rows = list(predict(student, other, 3))
    assert [node for node, _ in rows] == [str(number) for number in range(30)]
    assert sum(p for _, p in rows[0][1]) == pytest.approx(1)
    assert rows == list(predict(student, None, 3))


def test_another_graph_is_refused_on_resume(graph: Path, tmp_path: Path) -> None:
    own = write(tmp_path / "own.npz")
    trained(own, "alone", tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    write(tmp_path / "own.npz", labels=np.arange(30) // 10)
    with pytest.raises(InputError, match="other nodes"):
        trained(own, "alone", tmp_path / "run", resume=True)


def test_a_checkpoint_is_a_teacher(graph: Path, finished: Path, tmp_path: Path) -> None:
    weights = finished / "dskd/teacher/student.safetensors"
    given = trained(graph, "dskd", tmp_path / "run", f"teacher.checkpoint={weights}")
    name = "student.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (finished / "dskd" / name).read_bytes()
    assert given.teacher_accuracy is not None
    with pytest.raises(InputError, match=r"teacher\.checkpoint"):
        trained(graph, "dskd", tmp_path / "x", f"teacher.checkpoint={weights}", "teacher.hidden=9")
    assert not (tmp_path / "x").exists()


def test_a_run_takes_more_epochs_and_its_teacher_stays(graph: Path, tmp_path: Path) -> None:
    trained(graph, "dskd", tmp_path / "run")
    teacher = (tmp_path / "run/teacher/student.safetensors").read_bytes()
    trained(graph, "dskd", tmp_path / "run", "train.epochs=5", resume=True)
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 5
    assert (tmp_path / "run/teacher/student.safetensors").read_bytes() == teacher


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"classes": np.array(["a", "b", "c"])}, (), "the classes: .*'0'.* there, .*'a'.* here"),
        ({}, ("data.normalize=true",), "normalize: false there, true here"),
    ],
)
def test_a_teacher_of_other_data_is_refused(
    finished: Path, tmp_path: Path, changes: dict[str, Any], settings: tuple[str, ...], message: str
) -> None:
    weights = f"teacher.checkpoint={finished / 'dskd/teacher/student.safetensors'}"
    other = write(tmp_path / "other.npz", **changes)
    with pytest.raises(InputError, match=f"trained for other data: .*{message}"):
        trained(other, "dskd", tmp_path / "run", weights, *settings)
    assert not (tmp_path / "run").exists()


def test_a_graph_that_changed_since_the_training_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, run = write(tmp_path / "own.npz"), tmp_path / "run"
    trained(own, "alone", run)
    evaluate(run)
    list(predict(load_student(run), None, 1))
    assert "is not what it was" not in caplog.text
    write(own, train=np.arange(18, 30), test=np.arange(12))
    evaluate(run)
    list(predict(load_student(run), None, 1))
    told = [one for one in caplog.messages if "may have learned from what is the test split" in one]
    assert len(told) == 2
    make_report([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "may have learned from what is the test split" in text


def test_a_file_with_a_split_takes_no_split_of_each_seed(graph: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        changes = ("data.split_seed=null", f"seed={seed}")
        with pytest.raises(InputError, match=r"data\.split_seed does not apply to npz: the file"):
            trained(graph, "alone", tmp_path / "run", *changes)


def test_a_recipe_says_where_everything_is(graph: Path, tmp_path: Path) -> None:
    plain = plan(graph, "dskd", tmp_path).plain()
    assert plain["task"] == "graphs"
    assert "mixup" not in plain["train"]
    assert plain["data"]["root"] == str(graph)


def test_the_shipped_recipes_can_be_read_and_are_named_in_the_help() -> None:
    from dskd.cli.graphs import graphs_
    from dskd.engine.tasks.graphs.recipe import RECIPES

    for name in RECIPES.shipped():
        assert RECIPES.load(name).method.name == "graphs/alignahead"
        assert graphs_.help is not None
        assert name in graphs_.help
    # The facts of Alignahead's public code.
    ppi = RECIPES.load("ppi")
    assert (ppi.student.name, ppi.student.layers, ppi.student.heads) == ("gat", 4, 3)
    assert (ppi.student.hidden, ppi.train.batch_size, ppi.train.epochs) == (64, 2, 300)
    assert (ppi.train.lr, ppi.train.weight_decay, ppi.train.milestones) == (0.005, 0.0, ())
    assert ppi.method.options == {"peers": ("same",), "weight": 1.0}
