"""Graphs from Python: the same runs as those of the commands."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import dskd
from dskd.api.task import resolved
from dskd.engine.tasks.graphs.recipe import RECIPES, data_settings
from tests.graphs.small_graphs import write

STUDENT = {"name": "gcn", "hidden": 8}
TEACHER = {"name": "gat", "layers": 2, "hidden": 8}


@pytest.mark.parametrize("method", ["alone", "alignahead", "dskd"])
def test_a_call_trains_the_student_of_the_command(
    graph: Path, finished: Path, tmp_path: Path, method: str
) -> None:
    teacher = TEACHER if method == "dskd" else None
    given: dict[str, Any] = {"data": graph, "epochs": 3, "out": tmp_path / "run", "verbose": 0}
    result = dskd.graphs.distill(STUDENT, teacher=teacher, method=method, **given)
    name = "student.safetensors"
    assert (result.path / name).read_bytes() == (finished / method / name).read_bytes()
    found = dskd.graphs.evaluate(result.path)
    assert found.accuracy == pytest.approx(result.test_accuracy, abs=1e-3)


def test_training_alone_leaves_method_and_teacher_of_a_recipe_out(
    graph: Path, finished: Path, tmp_path: Path
) -> None:
    recipe = {"method": {"name": "dskd", "beta": 2}, "teacher": TEACHER}
    given: dict[str, Any] = {"data": graph, "epochs": 3, "out": tmp_path / "run", "verbose": 0}
    result = dskd.graphs.train(STUDENT, recipe=recipe, **given)
    assert result.method == "graphs/alone"
    name = "student.safetensors"
    assert (result.path / name).read_bytes() == (finished / "alone" / name).read_bytes()


def test_probabilities_are_those_of_the_commands_predictions(
    finished: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.npz", labels=None, train=None, val=None, test=None)
    found = dskd.graphs.predict(finished / "alone", other)
    assert found.shape == (30, 3)
    assert torch.allclose(found.sum(1), torch.ones(30))
    assert torch.equal(found, dskd.graphs.predict(finished / "alone"))  # the same features


def test_what_does_not_fit_is_refused(graph: Path, tmp_path: Path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"data": "nowhere.txt"}, "nowhere.txt"),
        ({"data": graph, "method": "dskd"}, "needs a teacher"),
        ({"data": graph, "method": "alignahaed"}, "alignahead"),
        ({"data": graph, "epochs": 2, "train": {"epochs": 3}}, "contradict"),
    ]
    for arguments, said in refused:
        with pytest.raises(dskd.InputError, match=said):
            dskd.graphs.distill("gcn", out=tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


def test_settings_of_a_method_change_that_of_the_recipe(graph: Path) -> None:
    recipe = {"method": {"name": "alignahead++", "auxiliary": 0.5}}
    given = {"method": {"features": 0.0}, "epochs": 2, "train": None, "seed": None, "out": None}
    parts = {"student": "gcn", "data": graph}
    values, folder = RECIPES.read(recipe)
    method = resolved(RECIPES, data_settings, values, folder, parts, given).method
    assert method.name == "graphs/alignahead++"
    assert method.options["auxiliary"] == 0.5
    assert method.options["features"] == 0.0


def test_the_recipe_of_the_caller_stays(graph: Path) -> None:
    recipe = {"data": {"name": "generated"}, "method": {"name": "alignahead"}}
    before = copy.deepcopy(recipe)
    given = dict.fromkeys(("method", "epochs", "train", "seed", "out"))
    parts = {"student": "gcn", "data": graph}
    own = resolved(RECIPES, data_settings, *RECIPES.read(recipe), parts, given)
    assert own.data.name == "npz"
    assert recipe == before
    with pytest.raises(dskd.InputError, match=r"student holds settings, as in .*; got 'gcn'"):
        dskd.graphs.distill(recipe={"student": "gcn"}, data=graph)
