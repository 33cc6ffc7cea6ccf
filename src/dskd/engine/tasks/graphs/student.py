"""Load a trained student of graphs, evaluate it, and predict with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dskd.engine.evaluate import EvaluationResult
from dskd.engine.tasks.finished import Which, finished_run
from dskd.engine.tasks.graphs.data import Graph, GraphData
from dskd.engine.tasks.graphs.job import shape_of
from dskd.engine.tasks.graphs.loader import GraphLoader
from dskd.engine.tasks.graphs.metadata import read_student_metadata
from dskd.engine.tasks.graphs.models import GraphNet, Shape
from dskd.engine.tasks.graphs.npz import read_unlabelled
from dskd.engine.tasks.graphs.recipe import RECIPES
from dskd.engine.tasks.graphs.settings import GraphRecipe
from dskd.engine.tasks.graphs.sources import load_graphs
from dskd.engine.tasks.graphs.task import GRAPHS
from dskd.engine.tasks.same_data import check_same_data, warn_of_other_data
from dskd.errors import InputError
from dskd.storage.run_files import LAST
from dskd.storage.weights import load_weights, read_weights

AUXILIARY = "auxiliary.safetensors"


@dataclass(frozen=True)
class GraphStudent:
    """A trained student.

    Attributes:
        model: The network in eval mode, on the CPU.
        classes: Name of each class or label.
        multilabel: Whether a node has several labels.
        recipe: Of the run that trained it.
        run: The folder of that run.
    """

    model: GraphNet
    classes: tuple[str, ...]
    multilabel: bool
    recipe: GraphRecipe
    run: Path


def load_student(run: Path, which: Which = "last", number: int = 1) -> GraphStudent:
    """Loads a student of a finished run.

    Args:
        run: The folder of the run.
        which: The weights of the last or of the best epoch.
        number: Which of several students that learned online, from 1.

    Raises:
        InputError: There is no finished run of graphs, or it has no such student.
    """
    recipe, path = finished_run(run, RECIPES, which)
    metadata = read_student_metadata(run / LAST)
    settings = metadata.model
    peers = recipe.method.options.get("peers", ())
    if not isinstance(number, int) or not 1 <= number <= 1 + len(peers):
        raise InputError(f"{run} has {1 + len(peers)} students, and no student {number!r}")
    prefix = ""
    if number > 1:
        if which == "best":
            raise InputError(
                f"the best epoch of {run} is saved of student 1 alone; ask for student {number} "
                "without it, which takes the last epoch"
            )
        if (kind := peers[number - 2]) != "same":
            settings = settings.model_copy(update={"name": kind})
        path, prefix = run / AUXILIARY, f"peers.{number - 2}."
    weights = {
        key.removeprefix(prefix): value
        for key, value in read_weights(path).items()
        if key.startswith(prefix)
    }
    model = GraphNet(settings, Shape(metadata.features, len(metadata.classes)))
    load_weights(model, weights, f"student {number} in {path}")
    return GraphStudent(model.eval(), metadata.classes, metadata.multilabel, recipe, run)


def evaluate(run: Path, which: Which = "last", number: int = 1) -> EvaluationResult:
    """Evaluates a student of a finished run on the test split of its data.

    A warning tells of data that has changed since the run was trained.

    Args:
        run: The folder of the run.
        which: As for `load_student`.
        number: As for `load_student`.

    Raises:
        InputError: As `load_student`, or the data cannot be read or is not that of the run.
    """
    student = load_student(run, which, number)
    data = load_graphs(student.recipe.split_data)
    _check_shape(student, data, run)
    warn_of_other_data(run, data.fingerprint())
    loader = GraphLoader(data.test, torch.device("cpu"))
    model = student.model
    found = GRAPHS.evaluate(
        model,
        lambda batch: {"student": model(batch.features, batch.edges).logits[batch.nodes]},
        loader,
    )
    return found["student"]


@torch.no_grad()
def logits_on(run: Path, data: GraphData) -> Tensor:
    """The logits of a finished run's student for the test nodes of some data, ``[N, K]``.

    Raises:
        InputError: As `load_student`, or the data is not that of the run.
    """
    student = load_student(run)
    _check_shape(student, data, run)
    check_same_data(run, data.fingerprint())
    model, loader = student.model, GraphLoader(data.test, torch.device("cpu"))
    parts = [model(one.features, one.edges).logits[one.nodes] for one in loader.single()]
    return torch.cat(parts)


def _check_shape(student: GraphStudent, data: GraphData, run: Path) -> None:
    if shape_of(data) != student.model.shape:
        raise InputError(f"the graphs of {run} have other features or classes now; give the same")


Row = tuple[str, list[tuple[str, float]]]
"""A node, and its most likely classes or labels with their probabilities."""


def predict(student: GraphStudent, graph: Path | None, top: int) -> Iterator[Row]:
    """The most likely classes of each node.

    Args:
        student: From `load_student`.
        graph: An .npz file; None for the graphs of the run: that of a single one, or those of the
            test split.
        top: Classes of each node, at most.

    Raises:
        InputError: The graph cannot be read, or has another number of features.
    """
    graphs = _graphs(student, graph)
    for number, one in enumerate(graphs, 1):
        prefix = f"{number}:" if len(graphs) > 1 else ""
        best = _probabilities(student, one).topk(min(top, len(student.classes)), dim=1)
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        for node, (values, labels) in enumerate(rows):
            pairs = zip(labels, values, strict=True)
            yield f"{prefix}{node}", [(student.classes[label], value) for label, value in pairs]


def probabilities(student: GraphStudent, graph: Path | None) -> Tensor:
    """The probability of each class, or of each label, for all nodes, ``[N, K]``.

    Args:
        student: From `load_student`.
        graph: As for `predict`. The nodes of several graphs follow each other.

    Raises:
        InputError: As `predict`.
    """
    return torch.cat([_probabilities(student, one) for one in _graphs(student, graph)])


@torch.no_grad()
def _probabilities(student: GraphStudent, graph: Graph) -> Tensor:
    logits: Tensor = student.model(graph.features, graph.edges).logits
    return logits.sigmoid() if student.multilabel else logits.softmax(1)


def _graphs(student: GraphStudent, path: Path | None) -> tuple[Graph, ...]:
    settings = student.recipe.split_data
    if path is None:
        data = load_graphs(settings)
        warn_of_other_data(student.run, data.fingerprint())
        graphs = data.test.graphs
    else:
        graphs = (read_unlabelled(path, settings.normalize),)
    for graph in graphs:
        if graph.features.shape[1] != student.model.shape.features:
            raise InputError(
                f"{path or 'the graph'} has {graph.features.shape[1]} features a node, and the "
                f"student knows {student.model.shape.features}; give a graph of the same kind"
            )
    return graphs
