"""Bad input on graphs is one line that names the fix, and exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dskd.cli.commands import run_command
from dskd.engine.tasks.graphs.recipe import RECIPES
from dskd.engine.tasks.graphs.sources import load_graphs
from dskd.engine.tasks.graphs.student import load_student
from dskd.errors import InputError
from tests.graphs.small_graphs import SMALL, write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": None}, "has no 'edges'"),
        ({"features": None}, "has no 'features'"),
        ({"labels": None}, "has no 'labels'"),
        ({"edges": np.array([[0, 30]])}, "not one of the 30 nodes"),
        ({"edges": np.array([[0, -1]])}, "negative"),
        ({"edges": np.zeros((3, 3), int)}, r"\[E, 2\]"),
        ({"features": np.full((30, 5), np.nan)}, "NaN"),
        ({"features": np.zeros((29, 5))}, "29 nodes have 30 labels"),
        ({"labels": np.full(30, 10**12)}, "too large"),
        ({"labels": np.zeros(30)}, "whole numbers"),
        ({"train": None}, "both 'train' and 'test'"),
        ({"train": None, "test": None}, "has 'val' and needs both 'train' and 'test'"),
        ({"train_mask": np.ones(30, bool)}, "unknown array .*'train_mask'; did you mean 'train'"),
        ({"val": None, "valid": np.arange(12, 18)}, "'valid'; did you mean 'val'"),
        ({"feature_data": np.zeros(3)}, "both 'features' and 'feature_data'"),
        ({"unlabelled": np.array([3])}, "a node of 'unlabelled' is in a split"),
        ({"train": np.arange(20)}, "two splits"),
        ({"test": np.zeros(0, int)}, "has no nodes"),
        ({"classes": np.array(["a"])}, "1 names for 3 classes"),
        ({"features": np.array(["x"] * 30)}, "no graph that can be read"),
        ({"train": np.arange(30) < 12}, r"write a mask as mask\.nonzero\(\)\[0\]"),
        (
            {"labels": np.where(np.arange(30) > 27, -1, np.arange(30) % 3)},
            r"2 nodes of a split have no label \(-1\); leave them out of it",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "graph.npz", **changes)
    settings = RECIPES.load(None, [*SMALL, "data.name=npz", f"data.root={path}"]).data
    with pytest.raises(InputError, match=message) as error:
        load_graphs(settings)
    assert "\n" not in str(error.value)


def test_classes_with_a_gap_are_refused(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("train", "val", "test"))
    path = write(tmp_path / "graph.npz", labels=np.arange(30) % 2 * 2, **nothing)
    sizes = ["data.train_per_class=2", "data.val_per_class=2"]
    settings = RECIPES.load(None, [*SMALL, "data.name=npz", f"data.root={path}", *sizes]).data
    with pytest.raises(InputError, match="class 1 has no nodes: classes are counted from 0"):
        load_graphs(settings)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"text"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "graph.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no graph that can be read"):
        load_graphs(RECIPES.load(None, [*SMALL, "data.name=npz", f"data.root={path}"]).data)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    np.savez(path, edges=np.array([object()], dtype=object), features=np.zeros(1), labels=[0])
    with pytest.raises(InputError, match="no graph that can be read"):
        load_graphs(RECIPES.load(None, [*SMALL, "data.name=npz", f"data.root={path}"]).data)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=npz"], "data.root"),
        (["data.name=coraa"], "did you mean 'cora'"),
        (["data.name=cora", "data.split_seed=1"], "public split"),
        (["data.name=generated", "train.mixup=0.2"], "train.mixup|mixup is a setting of images"),
        (["data.name=generated", "train.optimizer=dot"], "dot"),
        (["data.name=generated", "student.heads=2"], "heads is a setting of gat"),
        (["data.name=generated", "student.name=mlp"], "student.name"),
        (["data.name=generated", "method.name=dskd"], "needs a teacher"),
        (["data.name=generated", "teacher.name=gat"], "'alignahead' learns from no teacher"),
        (["data.name=generated", "--teacher", "gat"], "teacher.name has no effect"),
        (["data.name=generated", "method.name=kd"], "unknown method"),
        (["data.name=generated", "method.peers=[mlp]"], "peers"),
        (["data.name=generated", "method.peers=[]"], "peers"),
        (["data.name=generated", "data.train_per_class=100"], "too few"),
        (["data.name=generated", "trian.epochs=1"], "did you mean 'train'"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(
    tmp_path: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    out = tmp_path / "run"
    code = run_command(["graphs", "distill", "student.name=gcn", *overrides, f"out={out}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert re.search(message, line), line
    assert not out.exists()


def test_tasks_are_not_mixed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(finished / "alone")
    for command in (
        ["evaluate", run],
        ["distill", f"{run}/recipe.yaml"],
        ["distill", "digits", "method.name=graphs/alignahead"],
    ):
        assert run_command(command) == 2
        assert "dskd graphs" in capsys.readouterr().err


def test_a_run_of_another_task_is_not_called_one_of_images(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("task: segment\n")
    with pytest.raises(InputError, match="a run of another task"):
        load_student(tmp_path)


def test_a_data_set_that_cannot_be_downloaded_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dskd.engine.tasks.graphs import sources

    def offline(*_: object) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(sources, "_read_published", offline)
    settings = RECIPES.load("cora", [f"data.root={tmp_path}"]).data
    with pytest.raises(InputError, match=r"cannot be downloaded .*no network.*data\.root"):
        load_graphs(settings)
