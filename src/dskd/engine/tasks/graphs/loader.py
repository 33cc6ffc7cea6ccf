"""Batches of graphs, as the engine trains on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from dskd.data.epoch_plan import EpochPlan, draw_plan
from dskd.data.loader import Batch, InOrder, Loader, SplitLoaders, ViewChoice
from dskd.engine.tasks.graphs.data import GraphData, GraphSplit
from dskd.engine.tasks.graphs.edges import Edges


def _no_edges() -> Edges:
    return Edges(torch.zeros(2, 0, dtype=torch.int64), 0)


@dataclass(frozen=True)
class GraphBatch(Batch):
    """Some graphs as one, and the nodes of them that are labelled.

    Of a `Batch`, ``images`` are the features of all nodes, float32 ``[N, F]``, and ``labels`` and
    ``indices`` are those of the labelled nodes.

    Attributes:
        edges: Those between the nodes of the batch.
        nodes: int64 ``[B]``, the labelled nodes of the batch.
        turn: Which student learns, from 0.
    """

    samples: ClassVar[str] = "nodes"

    edges: Edges = field(default_factory=_no_edges)
    nodes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    turn: int = 0

    @property
    def features(self) -> Tensor:
        """The features of all nodes, ``[N, F]``."""
        return self.images

    def hits(self, logits: Tensor) -> Tensor:
        """The share of the labelled nodes whose class is right, or of their labels that are."""
        if self.labels.dim() == 1:
            return super().hits(logits)
        return (predicted(logits) == self.labels).float().mean()


THRESHOLD = 0.5
"""A label is predicted if its logit is at least this, as in the public code of Alignahead."""


def predicted(logits: Tensor) -> Tensor:
    """The labels that logits of several labels predict, int64 of 0 and 1."""
    return (logits >= THRESHOLD).long()


class GraphLoader(Loader):
    """The graphs of a split, on a device.

    Args:
        split: The graphs.
        device: The device that holds them.
        turns: How many students pass over all graphs in an epoch, one after the other.

    Attributes:
        split: The graphs on the device.
        edges: Of each graph.
    """

    def __init__(self, split: GraphSplit, device: torch.device, turns: int = 1) -> None:
        self.split = GraphSplit(
            tuple(graph.to(device) for graph in split.graphs),
            tuple(nodes.to(device) for nodes in split.nodes),
        )
        self.edges = tuple(Edges(graph.edges, len(graph)) for graph in self.split.graphs)
        self.device, self.turns = device, turns
        self.labels = self.split.labels
        self.sample_shape = (split.graphs[0].features.shape[1],)
        starts = torch.tensor([0, *map(len, split.graphs)]).cumsum(0).tolist()
        self._starts: list[int] = starts

    def with_turns(self, turns: int) -> GraphLoader:
        """The same graphs for another number of students."""
        return GraphLoader(self.split, self.device, turns)

    def steps(self, batch_size: int, world_size: int = 1) -> int:
        """In each epoch, each student in turn passes over all graphs."""
        return self.turns * -(-len(self.split.graphs) // batch_size)

    def draw_plan(
        self, seed: int, epoch: int, how: ViewChoice, batch_size: int, world_size: int = 1
    ) -> EpochPlan:
        """The order of the graphs in an epoch, the same for each student."""
        return draw_plan(seed, epoch, len(self.split.graphs), *how)

    def batches(
        self,
        plan: EpochPlan,
        batch_size: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[GraphBatch]:
        """See `Loader.batches`. ``batch_size`` counts graphs."""
        own = self.steps(batch_size) // self.turns
        order: list[int] = plan.order.tolist()
        for step in range(start, self.turns * own):
            turn, place = divmod(step, own)
            chosen = order[place * batch_size : (place + 1) * batch_size]
            yield self.batch(chosen, turn=turn, epoch=plan.epoch, step=step)

    def batch(self, chosen: list[int], turn: int = 0, epoch: int = 0, step: int = 0) -> GraphBatch:
        """Some graphs as one batch.

        Args:
            chosen: Which graphs.
            turn: Which student learns.
            epoch: From 0.
            step: Of the epoch, from 0.
        """
        graphs = [self.split.graphs[index] for index in chosen]
        own = [self.split.nodes[index] for index in chosen]
        starts: list[int] = torch.tensor([0, *map(len, graphs)]).cumsum(0).tolist()[:-1]
        offsets = list(zip(graphs, own, starts, strict=True))
        labels = torch.cat([graph.labels[nodes] for graph, nodes, _ in offsets])
        named = zip(own, chosen, strict=True)
        indices = torch.cat([nodes + self._starts[index] for nodes, index in named])
        unused = torch.zeros_like(indices)
        return GraphBatch(
            torch.cat([graph.features for graph in graphs])
            if len(graphs) > 1
            else graphs[0].features,
            labels=labels,
            indices=indices,
            views=unused,
            seeds=unused,
            epoch=epoch,
            step=step,
            edges=Edges.joined([self.edges[index] for index in chosen]),
            nodes=torch.cat([nodes + start for _, nodes, start in offsets]),
            turn=turn,
        )

    def single(self) -> Iterator[GraphBatch]:
        """Each graph as a batch of its own, in order."""
        return (self.batch([index]) for index in range(len(self.split.graphs)))

    def in_order(self, batch_size: int, rank: int = 0, world_size: int = 1) -> InOrder:
        """Features and labels of the labelled nodes, a graph at a time."""
        for one in islice(self.single(), rank, None, world_size):
            yield one.features[one.nodes], one.labels

    def probe(self, count: int) -> Tensor:
        """The features of the first labelled nodes."""
        first = next(self.single())
        return first.features[first.nodes[:count]]

    def identity(self) -> dict[str, Any]:
        """See `Loader.identity`."""
        digest = hashlib.sha256()
        for graph in self.split.graphs:
            for part in (graph.features, graph.edges):
                digest.update(part.cpu().contiguous().numpy().data)
        return {"graphs": len(self.split.graphs), "sha256": digest.hexdigest()}


class GraphLoaders(SplitLoaders[GraphLoader]):
    """The loaders of all splits of a data set of graphs.

    Args:
        data: The data set.
        device: The device that holds the graphs.
    """

    data: GraphData

    def __init__(self, data: GraphData, device: torch.device) -> None:
        super().__init__(data, lambda split: GraphLoader(split, device))
