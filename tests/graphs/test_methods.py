"""How students learn online: in turn, as copies at the start, and without gradients in peers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dskd import methods
from dskd.engine.tasks.graphs.data import GraphData
from dskd.engine.tasks.graphs.edges import Edges
from dskd.engine.tasks.graphs.job import build_method, build_trainer
from dskd.engine.tasks.graphs.loader import GraphLoader, GraphLoaders
from dskd.engine.tasks.graphs.models import Shape, build_net
from dskd.engine.tasks.graphs.pyg import pyg
from dskd.engine.tasks.graphs.recipe import RECIPES
from dskd.engine.tasks.graphs.settings import GraphModelSettings
from dskd.engine.tasks.graphs.sources import load_graphs
from dskd.engine.tasks.graphs.task import micro_f1
from dskd.errors import InputError
from dskd.teacher.outputs import TeacherOutputs
from tests.graphs.small_graphs import plan

CPU = torch.device("cpu")


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_all_layers_of_gat_but_the_first_have_a_residual_connection() -> None:
    settings = GraphModelSettings(name="gat", layers=2, hidden=4, heads=2)
    net = build_net(settings, Shape(features=5, classes=3), seed=0)
    assert [layer.res is not None for layer in net.convolutions] == [False, True, True]


@pytest.fixture(scope="module")
def several() -> GraphData:
    return load_graphs(RECIPES.load("ppi", ["data.name=generated-multilabel"]).data)


def test_the_layers_of_gcn_are_those_of_pytorch_geometric() -> None:
    """With edges that are there twice, and some from a node to itself; gradients, too."""
    settings = GraphModelSettings(name="gcn", hidden=8, layers=1, dropout=0.0)
    net = build_net(settings, Shape(features=5, classes=3), seed=0)
    torch.manual_seed(0)
    features, edges = torch.rand(20, 5), torch.randint(0, 20, (2, 60))
    assert (edges[0] == edges[1]).any()
    assert len(set(zip(*edges.tolist(), strict=True))) < 60
    first, last = pyg("nn").GCNConv(5, 8), pyg("nn").GCNConv(8, 3)
    first.load_state_dict(net.convolutions[0].state_dict())
    last.load_state_dict(net.convolutions[1].state_dict())
    theirs, own = last(first(features, edges).relu(), edges), net(features, edges).logits
    torch.testing.assert_close(own, theirs)
    for logits in (theirs, own):
        logits.square().sum().backward()
    for mine, layer in zip(net.convolutions, (first, last), strict=True):
        for key, value in layer.named_parameters():
            torch.testing.assert_close(mine.get_parameter(key).grad, value.grad)


def test_students_start_as_copies_of_the_student_alone(graph: Path, tmp_path: Path) -> None:
    recipe = plan(graph, "alignahead++", tmp_path, "method.peers=[same, same]")
    data = load_graphs(recipe.data)
    first, *others = build_method(recipe, data).students
    alone = build_method(plan(graph, "alone", tmp_path), data).student
    assert len(others) == 2
    assert all(same(state(first), state(other)) for other in [*others, alone])


def test_peers_may_be_of_other_architectures(graph: Path, tmp_path: Path) -> None:
    recipe = plan(graph, "alignahead++", tmp_path, "method.peers=[gat, sage]")
    trainer = build_trainer(
        recipe, GraphLoaders(load_graphs(recipe.data), CPU), TeacherOutputs(None)
    )
    students: list[Any] = trainer.method.students  # type: ignore[assignment]
    assert [student.name for student in students] == ["gcn", "gat", "sage"]
    for _ in trainer.train_epoch():
        pass
    assert trainer.metrics.means()["loss/features"] > 0


def test_in_an_epoch_each_student_in_turn_passes_over_all_graphs(several: GraphData) -> None:
    loader = GraphLoader(several.train, CPU, turns=3)
    plan = loader.draw_plan(0, 1, (0, False, None, _none()), 2)
    batches = list(loader.batches(plan, 2))
    assert [batch.turn for batch in batches] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert loader.steps(2) == 9
    nodes = sorted(range(len(several.train)))
    for turn in range(3):
        seen = [batch.indices for batch in batches if batch.turn == turn]
        assert sorted(torch.cat(seen).tolist()) == nodes
    resumed = list(loader.batches(plan, 2, start=4))
    assert [one.indices.tolist() for one in resumed] == [b.indices.tolist() for b in batches[4:]]


def _none() -> Any:
    from dskd.data.augmentation import NO_AUGMENTATION

    return NO_AUGMENTATION


def test_graphs_of_a_batch_are_not_connected(several: GraphData) -> None:
    batch = GraphLoader(several.train, CPU).batch([3, 1])
    first, second = several.train.graphs[3], several.train.graphs[1]
    pairs = batch.edges.pairs
    assert pairs.shape[1] == first.edges.shape[1] + second.edges.shape[1]
    assert torch.equal(pairs[:, first.edges.shape[1] :] - len(first), second.edges)
    assert torch.equal(batch.features, torch.cat([first.features, second.features]))
    plain, values = Edges(pairs, len(first) + len(second)), torch.rand(len(batch.features), 2)
    for own, alike in (
        (batch.edges.normalized, plain.normalized),
        (batch.edges.differences, plain.differences),
    ):
        found = []
        for matrix in (own, alike):
            learned = values.clone().requires_grad_()
            product = matrix.times(learned)
            torch.autograd.backward(product.square().sum())
            found.append((product, learned.grad))
        torch.testing.assert_close(found[0], found[1])


def test_a_step_changes_the_student_whose_turn_it_is_alone(graph: Path, tmp_path: Path) -> None:
    recipe = plan(graph, "alignahead", tmp_path, "student.dropout=0.5")
    trainer = build_trainer(
        recipe, GraphLoaders(load_graphs(recipe.data), CPU), TeacherOutputs(None)
    )
    students: list[Any] = trainer.method.students  # type: ignore[assignment]
    before = [state(student) for student in students]
    steps: Iterator[None] = trainer.train_epoch()
    for turn in range(2):
        next(steps)
        now = [state(student) for student in students]
        changed = [not same(one, other) for one, other in zip(before, now, strict=True)]
        assert changed == [number == turn for number in range(2)]
        assert all(student.training for student in students)
        before = now


def test_the_dskd_branches_learn_from_the_layer_at_their_depth(graph: Path, tmp_path: Path) -> None:
    recipe = plan(graph, "dskd", tmp_path, "student.layers=2", "teacher.layers=4")
    method: Any = build_method(recipe, load_graphs(recipe.data))
    assert method.targets == [1, 3]
    assert [adapter.out_features for adapter in method.adapters] == [24, 24]  # 3 heads of 8


def test_micro_f1_counts_all_labels_together() -> None:
    predictions = torch.tensor([[1, 0, 1], [0, 0, 1]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert micro_f1(predictions, labels) == pytest.approx(100 * 2 * 2 / (3 + 3), abs=1e-3)


def test_names_of_methods_belong_to_their_task() -> None:
    assert methods.names("graphs")[0] == "graphs/alone"
    assert methods.resolve("graphs/alignahead", {})["weight"] == 1.0
    with pytest.raises(InputError, match="did you mean 'graphs/alignahead'"):
        methods.find("graphs/alignahaed")
    assert "graphs/alone" not in methods.names()


def test_alignahead_needs_two_hidden_layers(graph: Path, tmp_path: Path) -> None:
    recipe = plan(graph, "alignahead", tmp_path, "student.layers=1")
    with pytest.raises(InputError, match=r"student\.layers"):
        build_method(recipe, load_graphs(recipe.data))
