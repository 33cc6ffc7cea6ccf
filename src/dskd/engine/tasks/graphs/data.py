"""Graphs whose nodes have features and labels, and their splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dskd.errors import InputError
from dskd.storage.metric_names import Metric


@dataclass(frozen=True)
class Graph:
    """A graph.

    Attributes:
        features: float32 ``[N, F]``.
        edges: int64 ``[2, E]``, directed, from row 0 to row 1; an undirected edge is there twice.
        labels: int64 ``[N]``; or float32 ``[N, K]`` of 0 and 1, if a node has several labels.
    """

    features: Tensor
    edges: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device) -> Graph:
        """Copies the graph to a device."""
        return Graph(self.features.to(device), self.edges.to(device), self.labels.to(device))


@dataclass(frozen=True)
class GraphSplit:
    """The labelled nodes of a split, and the graphs around them.

    Attributes:
        graphs: The graphs.
        nodes: For each graph, the nodes of this split, int64.
    """

    graphs: tuple[Graph, ...]
    nodes: tuple[Tensor, ...]

    def __len__(self) -> int:
        return sum(map(len, self.nodes))

    @property
    def labels(self) -> Tensor:
        """The labels of the nodes of this split."""
        pairs = zip(self.graphs, self.nodes, strict=True)
        return torch.cat([graph.labels[nodes] for graph, nodes in pairs])


def metric_of_labels(labels: Tensor) -> Metric:
    """Accuracy for one class a node, or micro-F1 for several labels a node."""
    return "micro_f1" if labels.dim() == 2 else "accuracy"


@dataclass(frozen=True)
class GraphData:
    """A data set of graphs.

    Attributes:
        name: Name in the recipe.
        train: Training split.
        test: Test split.
        validation: Validation split; None without one.
        classes: Name of each class, or of each label.
        notes: Lines that tell the user about the data.
        own_split: Whether the user's file says which nodes are in which split.
    """

    name: str
    train: GraphSplit
    test: GraphSplit
    validation: GraphSplit | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    own_split: bool = False

    @property
    def multilabel(self) -> bool:
        """Whether a node has several labels."""
        return self.train.graphs[0].labels.dim() == 2

    @property
    def metric(self) -> Metric:
        """What is measured on the test nodes."""
        return metric_of_labels(self.train.graphs[0].labels)

    @property
    def features(self) -> int:
        """F, the number of features of a node."""
        return self.train.graphs[0].features.shape[1]

    def splits(self) -> dict[str, GraphSplit]:
        """The splits that exist, by name."""
        splits = {"training": self.train, "test": self.test}
        return splits if self.validation is None else splits | {"validation": self.validation}

    def fingerprint(self) -> str:
        """A hash of all graphs, labels and splits."""
        digest = hashlib.sha256()
        for where, split in self.splits().items():
            digest.update(f"{where} {len(split)}".encode())
            for graph, nodes in zip(split.graphs, split.nodes, strict=True):
                for part in (graph.features, graph.edges, graph.labels, nodes):
                    digest.update(f"{list(part.shape)} {part.dtype}".encode())
                    digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()


def check_graphs(data: GraphData, where: str) -> GraphData:
    """Returns the data if all graphs and labels are sound.

    Args:
        data: As a file or a generator gave it.
        where: Names it in an error.

    Raises:
        InputError: They are not.
    """
    for what, split in data.splits().items():
        if not len(split):
            raise InputError(f"{where}: the {what} split has no nodes; give it some")
        for graph, nodes in zip(split.graphs, split.nodes, strict=True):
            _check_graph(graph, nodes, data, where)
    return data


def _check_graph(graph: Graph, nodes: Tensor, data: GraphData, where: str) -> None:
    count = len(graph)
    if graph.features.shape[1] != data.features or not data.features:
        raise InputError(f"{where}: all nodes need the same number of features, one or more")
    if not bool(graph.features.isfinite().all()):
        raise InputError(f"{where}: a feature is NaN or infinite; replace it")
    if len(graph.labels) != count:
        raise InputError(f"{where}: {count} nodes have {len(graph.labels)} labels; give each one")
    for what, indices in (("edge", graph.edges), ("split", nodes)):
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < count:
            raise InputError(f"{where}: a node of an {what} is not one of the {count} nodes")
    classes, labels = len(data.classes), graph.labels[nodes]
    if (
        labels.dim() == 1
        and len(labels)
        and not 0 <= int(labels.min()) <= int(labels.max()) < classes
    ):
        if (missing := int((labels == -1).sum())) and int(labels.max()) < classes:
            raise InputError(
                f"{where}: {missing} nodes of a split have no label (-1); leave them out of it"
            )
        raise InputError(f"{where}: a label is not one of the {classes} classes")


def both_directions(edges: Tensor) -> Tensor:
    """Undirected edges ``[2, E]`` in both directions, each once, without loops, in a fixed order.

    Example:
        >>> both_directions(torch.tensor([[0, 1, 2], [1, 0, 2]]))
        tensor([[0, 1],
                [1, 0]])
    """
    edges = edges[:, edges[0] != edges[1]]
    source, target = torch.cat([edges, edges.flip(0)], 1)
    nodes = int(source.max()) + 1 if source.numel() else 1
    keys: Tensor = torch.unique(source * nodes + target)
    return torch.stack([keys // nodes, keys % nodes])


def rows_sum_to_one(features: Tensor) -> Tensor:
    """Features divided by the sum of their absolute values at each node; zeros stay zeros."""
    return features / features.abs().sum(1, keepdim=True).clamp_min(1e-12)


def split_by_seed(
    labels: Tensor, classes: int, seed: int, train: int, validation: int, known: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Training and validation nodes of each class, and the rest as test nodes.

    Args:
        labels: int64 ``[N]``.
        classes: K.
        seed: Of the draw.
        train: Training nodes of each class.
        validation: Validation nodes of each class.
        known: Nodes that may be drawn, int64.

    Raises:
        InputError: A class has too few nodes.

    Example:
        >>> labels = torch.arange(12) % 2
        >>> [len(part) for part in split_by_seed(labels, 2, 0, 2, 1, torch.arange(12))]
        [4, 2, 6]
    """
    generator = torch.Generator().manual_seed(seed)
    known = known[torch.randperm(len(known), generator=generator)]
    parts: list[list[Tensor]] = [[], [], []]
    for label in range(classes):
        nodes = known[labels[known] == label]
        if not len(nodes):
            raise InputError(
                f"class {label} has no nodes: classes are counted from 0 without gaps; renumber "
                "the labels"
            )
        if len(nodes) <= train + validation:
            raise InputError(
                f"class {label} has {len(nodes)} nodes, too few for data.train_per_class={train} "
                f"data.val_per_class={validation} and a test node; make them smaller"
            )
        bounds = (nodes[:train], nodes[train : train + validation], nodes[train + validation :])
        for part, own in zip(parts, bounds, strict=True):
            part.append(own)
    first, second, third = (torch.cat(part).sort().values for part in parts)
    return first, second, third


def one_graph(
    name: str,
    graph: Graph,
    splits: Sequence[Tensor],
    classes: Sequence[str],
    notes: tuple[str, ...] = (),
) -> GraphData:
    """A data set whose splits are nodes of one graph.

    Args:
        name: Name in the recipe.
        graph: The graph.
        splits: Nodes for training, validation and test.
        classes: Names of the classes.
        notes: See `GraphData`.
    """
    train, validation, test = (GraphSplit((graph,), (nodes,)) for nodes in splits)
    own_validation = validation if len(validation) else None
    return GraphData(name, train, test, own_validation, tuple(classes), notes)
