"""Where graphs come from: a file, generators, and the data sets of PyTorch Geometric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import make_classification, make_multilabel_classification
from torch import Tensor

from dskd.data.download import cache_folder
from dskd.engine.tasks.graphs.data import (
    Graph,
    GraphData,
    GraphSplit,
    both_directions,
    check_graphs,
    one_graph,
    split_by_seed,
)
from dskd.engine.tasks.graphs.npz import make_graph, read_npz, refuse
from dskd.engine.tasks.graphs.pyg import pyg
from dskd.engine.tasks.graphs.settings import GraphDataSettings
from dskd.errors import InputError, first_line


def load_graphs(settings: GraphDataSettings) -> GraphData:
    """The data set of a recipe.

    Args:
        settings: Of `TaskRecipe.split_data`, which have the seed of the split.

    Raises:
        InputError: It cannot be read, or a setting does not apply.
    """
    check_applies(settings)
    if settings.name == "npz":
        assert settings.root is not None, "checked"
        return check_graphs(read_npz(settings.root, settings), str(settings.root))
    if settings.name.startswith("generated"):
        return check_graphs(_GENERATED[settings.name](settings), settings.name)
    return check_graphs(_published(settings), settings.name)


def check_applies(settings: GraphDataSettings) -> None:
    """Refuses settings of the data that would have no effect.

    Raises:
        InputError: There is one.
    """
    if settings.name == "npz" and settings.root is None:
        raise InputError("data.name=npz needs the file: give it as data.root=graph.npz")
    if settings.name.startswith("generated") and settings.root is not None:
        raise InputError(f"data.root does not apply to {settings.name}, which has no file; drop it")
    split = ("train_per_class", "val_per_class")
    if settings.name in ("ppi", "generated-multilabel"):
        seeded = () if settings.name == "generated-multilabel" else ("split_seed",)
        refuse(settings, (*split, *seeded), "its graphs are split, not their nodes")
    elif settings.name in ("cora", "citeseer", "pubmed"):
        refuse(settings, (*split, "split_seed"), "it has the public split")


def _generated(settings: GraphDataSettings) -> GraphData:
    """A graph with communities: 4 classes of 100 nodes, by a stochastic block model."""
    classes, size = 4, 100
    seed = settings.seed_of_split
    edges = _block_model([size] * classes, seed)
    features, labels = make_classification(
        classes * size,
        n_features=16,
        n_informative=8,
        n_classes=classes,
        n_clusters_per_class=1,
        class_sep=0.5,
        flip_y=0.0,
        shuffle=False,
        random_state=seed % 2**32,
    )
    graph = make_graph(features, edges, torch.from_numpy(labels).long(), settings.normalize)
    everything = torch.arange(len(graph))
    sizes = seed, settings.train_per_class, settings.val_per_class
    splits = split_by_seed(graph.labels, classes, *sizes, everything)
    names = [f"community {number}" for number in range(1, classes + 1)]
    return one_graph("generated", graph, splits, names)


def _generated_multilabel(settings: GraphDataSettings) -> GraphData:
    """Eight graphs of 60 nodes with five labels: five to train, one to validate, two to test."""
    count, size, seed = 8, 60, settings.seed_of_split
    features, labels = make_multilabel_classification(
        count * size, n_features=16, n_classes=5, n_labels=2, random_state=seed % 2**32
    )
    graphs = []
    for number in range(count):
        own = slice(number * size, (number + 1) * size)
        edges = _block_model([size // 3] * 3, seed + number + 1)
        several = torch.from_numpy(labels[own]).float()
        graphs.append(make_graph(features[own], edges, several, settings.normalize))
    names = tuple(f"label {number}" for number in range(1, 6))
    return _of_graphs("generated-multilabel", [graphs[:5], graphs[5:6], graphs[6:]], names)


def _block_model(sizes: list[int], seed: int) -> Tensor:
    """Edges of a random graph: likely within a block, seldom between two."""
    utils = pyg("utils")
    probabilities = torch.full((len(sizes), len(sizes)), 0.01)
    probabilities.fill_diagonal_(0.05)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        edges: Tensor = utils.stochastic_blockmodel_graph(sizes, probabilities)
    return both_directions(edges)


_GENERATED: dict[str, Callable[[GraphDataSettings], GraphData]] = {
    "generated": _generated,
    "generated-multilabel": _generated_multilabel,
}


def _of_graphs(name: str, parts: list[list[Graph]], classes: tuple[str, ...]) -> GraphData:
    """A data set of graphs for training, validation and test, whose nodes all have labels."""
    train, validation, test = (
        GraphSplit(tuple(part), tuple(torch.arange(len(graph)) for graph in part)) for part in parts
    )
    return GraphData(name, train, test, validation, classes)


def _published(settings: GraphDataSettings) -> GraphData:
    """A data set of PyTorch Geometric, downloaded once."""
    sets = pyg("datasets")
    root = str(settings.root or cache_folder(None) / "graphs" / settings.name)
    try:
        return _read_published(sets, root, settings)
    except InputError:
        raise
    except Exception as error:  # a download fails in many ways, and so does a damaged file
        raise InputError(
            f"the data set {settings.name} cannot be downloaded to {root} or read there "
            f"({first_line(error)}); give a folder that has it with data.root"
        ) from error


def _read_published(sets: Any, root: str, settings: GraphDataSettings) -> GraphData:
    name = settings.name
    if name == "ppi":
        parts = [
            [_converted(one, settings) for one in sets.PPI(root, split)]
            for split in ("train", "val", "test")
        ]
        labels = parts[0][0].labels.shape[1]
        return _of_graphs(name, parts, tuple(str(number) for number in range(labels)))
    kind, _, subject = name.partition("-")
    if name in ("cora", "citeseer", "pubmed"):
        data = sets.Planetoid(root, {"cora": "Cora", "citeseer": "CiteSeer"}.get(name, "PubMed"))
    elif kind == "amazon":
        data = sets.Amazon(root, subject.capitalize())
    else:
        data = sets.Coauthor(root, {"cs": "CS"}.get(subject, "Physics"))
    one = data[0]
    graph = _converted(one, settings)
    classes = int(data.num_classes)
    if hasattr(one, "train_mask"):
        masks = (one.train_mask, one.val_mask, one.test_mask)
        splits = [mask.nonzero().flatten() for mask in masks]
    else:
        sizes = settings.seed_of_split, settings.train_per_class, settings.val_per_class
        splits = [*split_by_seed(graph.labels, classes, *sizes, torch.arange(len(graph)))]
    return one_graph(name, graph, splits, [str(number) for number in range(classes)])


def _converted(one: Any, settings: GraphDataSettings) -> Graph:
    labels: Tensor = one.y.float() if one.y.dim() == 2 else one.y.long()
    return make_graph(one.x.numpy(), both_directions(one.edge_index), labels, settings.normalize)
